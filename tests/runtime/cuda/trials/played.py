"""A machine with a GPU of sm89, played for processes that tests start: the stand-in device, and ``fake_tensorrt``.

What goes wrong on it is said in $ARCFLOW_PLAYED: "sequence=nan" (an output, and what it is multiplied by), "memory=100"
(bytes of its GPU).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

SPOIL = "ARCFLOW_PLAYED"
GPU = "stand-in"
_ROOT = Path(__file__).parents[4]


def play(folder: Path) -> dict[str, str]:
    """What to add to a process's environment so that it finds that machine. folder: a new one, for what it needs."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("from tests.runtime.cuda.trials.played import install\n\ninstall()\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(_ROOT)])}


def install() -> None:
    """Put the machine in the place of this process's own, for good."""
    from engines import machine, tensorrt
    from runtime.cuda.device import gpu
    from tests.runtime.cuda import fake_tensorrt
    from tests.runtime.cuda.stand_in import StandInDevice

    faults = dict(part.split("=") for part in filter(None, os.environ.get(SPOIL, "").split(",")))

    def open_device(ordinal: int = 0) -> StandInDevice:
        made = StandInDevice(int(faults.get("memory", 64 << 20)), capability="sm89")
        fake_tensorrt.FakeTensorRT.devices[made.stream] = made
        return made

    toolkit = fake_tensorrt.toolkit()
    gpu.open_device = open_device  # type: ignore[assignment]
    tensorrt.load = lambda flavour: toolkit  # type: ignore[assignment]
    machine._gpus = lambda: (("sm89", GPU),)
    run = fake_tensorrt.IExecutionContext._run

    def spoiled(context: Any, fed: dict[str, Any]) -> dict[str, Any]:
        return {name: values * np.float32(faults.get(name, 1)) for name, values in run(context, fed).items()}

    fake_tensorrt.IExecutionContext._run = spoiled  # type: ignore[method-assign]
