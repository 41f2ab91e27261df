"""How a measurement is told, whatever was measured: times, the machine, a table to read, a record to keep.

A record is a JSON object that begins with ``command``, ``date`` and ``machine``; figures follow, times among them as
:class:`Timing` has them. Standard library only, so that it runs where nothing is installed.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from foundation.files import atomic_file
from foundation.nvml import gpus

PACKAGES = (
    "numpy", "torch", "triton", "diffusers", "transformers", "accelerate", "peft", "safetensors", "tokenizers",
    "pillow", "msgspec", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13", "tensorrt", "tensorrt-cu13", "tensorrt-rtx-cu13-bindings", "cuda-bindings",
    "cuda-core", "nvidia-cuda-nvrtc", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend", "cupy-cuda13x",
)  # fmt: skip
"""Distributions whose version may matter to a figure."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, the least and the 99th percentile of ``samples`` measured ones."""

    median_s: float
    least_s: float
    p99_s: float
    samples: int


def timing(seconds: Sequence[float], calls: int = 1) -> Timing:
    """The summary of one or more measurements, each of which took ``calls`` calls."""
    each = [value / calls for value in seconds]
    return Timing(statistics.median(each), min(each), percentile(each, 0.99), len(each))


def percentile(values: Sequence[float], share: float) -> float:
    """The value at or below which that share (0 < share <= 1) of ``values`` lies: the nearest rank, never in between.

    ``values``: one or more, in any order. What a service is held to is not the average, but the slow end.
    """
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def begin(program: str, argv: Sequence[str] | None) -> dict[str, Any]:
    """A record without figures yet: ask before measuring, so that the machine's load is that of others.

    program: as a user types it; argv: its arguments, None for those of this process.
    """
    command = f"{program} {shlex.join(sys.argv[1:] if argv is None else argv)}".rstrip()
    return {"command": command, "date": f"{datetime.now(tz=UTC):%Y-%m-%d}", "machine": machine()}


def as_line(value: Mapping[str, Any]) -> str:
    """One line of JSON; numbers that are not finite become their names, and what JSON does not know its text."""
    return json.dumps(_plain(value), allow_nan=False)


def keep(path: Path, value: Mapping[str, Any]) -> None:
    """Write a record to a file, whole or not at all. Raises ArcFlowError."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def tell(
    record: Mapping[str, Any], rows: Iterable[Sequence[str]], right: Container[int] = (), path: Path | None = None
) -> None:
    """Print the rows as a table and the record as a line of JSON; with ``path`` keep it there. Raises ArcFlowError."""
    sys.stdout.write(f"{table(rows, right)}\n{as_line(record)}\n")
    if path is not None:
        keep(path, record)


def table(rows: Iterable[Sequence[str]], right: Container[int] = ()) -> str:
    """Rows as columns, two spaces apart; those whose number is in ``right`` are flush right.

    A row of one cell is a line of its own and makes no column wider.
    """
    lines = [tuple(row) for row in rows]
    cells = [line for line in lines if len(line) > 1]
    widths = [max(len(line[i]) for line in cells if len(line) > i) for i in range(max(map(len, cells), default=0))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place in right and len(line) > 1 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths or [0], strict=False))
        ).rstrip()
        for line in lines
    )


def machine() -> dict[str, Any]:
    """The machine: processor, cores and load, bytes of memory, system, GPUs with their driver, and versions.

    What the system does not tell is None.
    """
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_bytes": memory_bytes("MemTotal"),
        "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "gpus": gpus(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def shown(found: Mapping[str, Any]) -> str:
    """A machine in a few words, for a table."""
    memory = f", {found['memory_bytes'] / (1 << 30):.0f} GiB" if found["memory_bytes"] else ""
    cards = [f"{gpu['name']} (driver {gpu['driver']})" for gpu in found["gpus"]]
    return "; ".join([f"{found['cpu']}, {found['cores']} cores{memory}", *cards])


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes(field: str) -> int | None:
    """A field of ``/proc/meminfo`` ("MemTotal", "MemAvailable"); None where the system has none."""
    return next((int(text.split()[0]) << 10 for name, text in _proc("meminfo") if name == field), None)


def versions() -> dict[str, str]:
    """Those of PACKAGES that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    names = (text for name, text in _proc("cpuinfo") if name == "model name")
    return next(names, platform.processor() or platform.machine())


def _proc(name: str) -> list[tuple[str, str]]:
    try:
        lines = Path("/proc", name).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [(key.strip(), text.strip()) for key, _, text in (line.partition(":") for line in lines)]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def gigabytes(size: int) -> str:
    """Bytes for people: "8.62 GB", "9.4 MB"."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
