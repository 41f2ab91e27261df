"""Not a test: what the FP8 gate of the small pipelines takes, beside what the estimate says. Linux.

Usage: python -m tests.export.gate_load ROOT. Prints a line a model and size: memory and time, estimated and measured
(peak of resident memory from the gate's start on, processor time on one thread).
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from export.assembling.estimate import estimate
from export.assembling.gate import measure
from export.assembling.stages import build_networks
from export.fp8.calibration import nominal
from export.fp8.policy import layer_of
from export.precision import Precision
from export.sources.models import choose
from export.students.request import Request, inspect_sources, read_sources
from export.tensorrt.profiles import choose_shapes
from tests.export.pipelines import small_flux, small_qwen

RUNS = (("flux", small_flux, ("320x320", "1024x1024")), ("qwen", small_qwen, ("320x320", "512x512")))


def main() -> None:
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    for model, make, sizes in RUNS:
        made, spec = make(root / model), choose(model)
        for size in sizes:
            shapes = choose_shapes(spec.limits, size, "1")
            request = Request(
                spec=spec, precision=Precision.FP8, target="onnx", base=made.base, adapter=made.adapter,
                out=root / "out", workdir=root / "work", shapes=shapes, gate=10.0,
            )  # fmt: skip
            plain = inspect_sources(replace(request, precision=Precision.BF16))
            headers, rest = replace(plain, request=request), estimate(plain)  # Scales are put in below.
            sources = read_sources(headers)
            layers = (layer_of(name) for name in sources.student.weights if name.endswith(".weight"))
            sources = replace(sources, calibration=nominal(layers, sources.student.digest))
            networks, needed = build_networks(sources, lambda event: None), estimate(headers)
            Path("/proc/self/clear_refs").write_text("5")  # The peak from here on.
            start = time.process_time()
            measure(sources, networks)
            seconds, status = time.process_time() - start, Path("/proc/self/status").read_text()
            peak = int(status.split("VmHWM:")[1].split()[0]) << 10
            print(
                f"{model} {size}: estimated {needed.memory / 1e9:.2f} GB and {needed.seconds - rest.seconds:.1f} s, "
                f"measured {peak / 1e9:.2f} GB and {seconds:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
