"""What `CudaDevice` does, call by call, each scenario in a process of its own: fork by fork of this one.

``python -m tests.runtime.cuda.scenarios`` reads lines of JSON, {"scenario": name, "environment": {...}}; it answers
with {"status": exit status, "said": what it printed}. libcuda is fake_driver.cpp or, for ``on_gpu``, the machine's own:
``python -m tests.runtime.cuda.scenarios on_gpu`` needs numpy and cuda-bindings alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import traceback
from typing import Any

import numpy as np

from runtime.cuda.device.gpu import CudaDevice, open_device
from runtime.cuda.errors import DeviceMemoryError
from tests.runtime.cuda.parity import get
from tests.runtime.cuda.scenarios import device, graphs
from tests.runtime.cuda.scenarios.common import message, noise_of


def on_gpu() -> None:
    """A real GPU: kernels, graphs and events, and what it took, as JSON."""
    device.kernels()
    with open_device() as gpu:
        report = {"device": gpu.info.name, "capability": gpu.info.capability, "driver": gpu.info.driver}
        target = gpu.allocate(4 << 20, "noise")
        marks: list[Any] = []

        def work() -> None:
            marks[:] = [gpu.mark()]
            gpu.upload(target, np.zeros(4, dtype=np.float32))
            gpu.normal(5, 1 << 20, target)
            marks.append(gpu.mark())

        done = [gpu.replay("key", work) for _ in range(4)]
        assert done == ["eager", "recorded", "replayed", "replayed"], (done, gpu.refusals)
        made = get(gpu, target, (1 << 20,), np.float32)
        assert np.count_nonzero(made != noise_of(5, 1 << 20)) <= 2
        report["noise of 2^20 values, us"] = f"{1e6 * marks[1].seconds_since(marks[0]):.1f}"
        assert gpu.replay("waits", gpu.synchronize) == gpu.replay("waits", gpu.synchronize) == "eager"
        assert gpu.refusals["waits"]
        text = message(DeviceMemoryError, lambda: gpu.allocate(1 << 42, "far too much"))
        assert "for far too much cannot be had" in text
        gpu.synchronize()
        assert isinstance(gpu, CudaDevice)
    print(json.dumps(report))


def run(scenario: str) -> None:
    """Do a scenario here."""
    module = next(module for module in (device, graphs, sys.modules[__name__]) if hasattr(module, scenario))
    getattr(module, scenario)()


def run_apart(scenario: str, environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of a scenario in a child of this process, which has not touched the driver yet."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.environ.update(environment)
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    try:
                        run(scenario)
                        status = 0
                    except BaseException:  # noqa: BLE001 (it is told, and the child ends)
                        traceback.print_exc()
                said.flush()
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(ended), said.read()


def main() -> None:
    """Do the scenarios of the command line here, or answer until there are no more lines."""
    for scenario in sys.argv[1:]:
        run(scenario)
    for line in () if sys.argv[1:] else sys.stdin:
        status, said = run_apart(**json.loads(line))
        print(json.dumps({"status": status, "said": said}), flush=True)


if __name__ == "__main__":
    main()
