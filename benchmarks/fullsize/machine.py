"""The machine that a measurement was made on, and whether a part fits on it."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.fullsize.steps import Part
from foundation.errors import ArcFlowError

_PACKAGES = (
    "torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "safetensors", "tensorrt-rtx-cu13-bindings",
)  # fmt: skip


class NoRoomError(ArcFlowError):
    """The machine has too little disk or memory for a part."""


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system and the versions that matter, for the report."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes("MemTotal"),
        "load_1min": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def check(part: Part, folder: Path) -> None:
    """Reject a part that does not fit. folder: where it will work. Raises NoRoomError."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < part.disk:
        raise NoRoomError(
            f"part {part.name} needs {part.disk / 1e9:.0f} GB of disk, {folder} has {free / 1e9:.0f} GB free; "
            "name a larger place with --work"
        )
    available = memory_bytes("MemAvailable")
    if available < part.memory:
        raise NoRoomError(
            f"part {part.name} needs {part.memory / (1 << 30):.0f} GiB of memory, {available / (1 << 30):.1f} GiB are "
            "available; end other programs, or use a larger machine"
        )


def memory_bytes(field: str) -> int:
    """A field of ``/proc/meminfo`` in bytes. Raises NoRoomError where the system has none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError as error:
        raise NoRoomError("memory is read from /proc, which this system does not have; run this on Linux") from error
    values = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return values[field]


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
