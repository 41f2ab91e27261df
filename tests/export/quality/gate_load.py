"""Not a test: what the FP8 gate of the small pipelines takes, beside what the estimate says. Linux.

Usage: python -m tests.export.quality.gate_load ROOT. Prints a line a model and size: memory and time, estimated and
measured (peak of resident memory from the gate's start on, processor time on one thread).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from export.assembling.estimate import estimate
from export.assembling.gate import choose_gate_run, hold
from export.assembling.inputs import inspect
from export.assembling.wanted import Wanted
from export.fp8.calibration import nominal, write_calibration
from export.fp8.policy import layer_of
from export.precision import Precision
from export.sources.models import choose
from export.students.subject import open_subject
from export.tensorrt.profiles import choose_shapes
from tests.export.pipelines import small_flux, small_qwen

RUNS = (("flux", small_flux, ("320x320", "1024x1024")), ("qwen", small_qwen, ("320x320", "512x512")))


def main() -> None:
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    for model, make, sizes in RUNS:
        made, spec = make(root / model), choose(model)
        for size in sizes:
            subject, scales = open_subject(spec, str(made.base), str(made.adapter)).digested(), root / "scales.json"
            layers = (layer_of(name) for name in subject.student.weights if name.endswith(".weight"))
            write_calibration(nominal(layers, subject.student.digest), scales)
            wanted = Wanted(
                spec=spec, precision=Precision.FP8, target="onnx", out=root / "out", workdir=root / "work",
                shapes=choose_shapes(spec.limits, size, "1"), gate=10.0, calibration=scales,
            )  # fmt: skip
            inputs = inspect(wanted, subject).digested()
            gate_run = choose_gate_run(inputs)
            assert gate_run is not None
            needed, gate = estimate(inputs, gate_run), gate_run.needed
            Path("/proc/self/clear_refs").write_text("5")  # The peak from here on.
            start = time.process_time()
            hold(inputs, gate_run)
            seconds, status = time.process_time() - start, Path("/proc/self/status").read_text()
            peak = int(status.split("VmHWM:")[1].split()[0]) << 10
            print(
                f"{model} {size}: estimated {needed.memory / 1e9:.2f} GB and {gate.seconds:.1f} s, "
                f"measured {peak / 1e9:.2f} GB and {seconds:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
