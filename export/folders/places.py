"""Whether this machine has what a build needs, known before it starts: memory, folders that can be written, room."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from engines.bundle import is_folder
from engines.schema import MANIFEST_NAME
from export.errors import ExportError


def check_out(out: Path) -> None:
    """Raise ExportError unless ``out`` is free, empty, or a bundle: anything else must not be replaced."""
    check_place(out.parent, "--out", shown=out)
    replaceable = is_folder(out) and ((out / MANIFEST_NAME).is_file() or not any(out.iterdir()))
    if os.path.lexists(out) and not replaceable:
        raise ExportError(f"{out} exists and is not a bundle: it will not be replaced; choose another --out")


def check_place(folder: Path, option: str, size: int = 0, shown: Path | None = None) -> None:
    """Raise ExportError where ``folder`` cannot be made and written, or has no room for ``size`` bytes.

    option: of the command that names the folder; shown: what to call it. The message names what is in the way.
    """
    shown, there = shown or folder, existing(folder)
    if not there.is_dir():
        kind = "a link that leads nowhere" if there.is_symlink() else "a file"
        raise ExportError(
            f"cannot write {shown}: {there} is {kind}, and a folder is needed there; choose another {option}, "
            f"or move {there} away"
        )
    if not os.access(there, os.W_OK):
        raise ExportError(f"cannot write {shown}: you may not write to {there}; choose another {option}")
    room = shutil.disk_usage(there).free
    if room < size:
        raise ExportError(f"{shown} needs {size:,} bytes, {room:,} are free there; choose another {option}")


def check_memory(size: int, hint: str = "") -> None:
    """Raise ExportError where less than ``size`` bytes of memory are free. hint: what would take less."""
    free = available_memory()
    if free is not None and free < size:
        raise ExportError(
            f"the build needs about {size:,} bytes of memory, {free:,} are free: close other programs, or build on a "
            f"larger machine{hint}"
        )


def existing(path: Path) -> Path:
    """``path``, or the nearest of its parents that there is, whatever it is."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if os.path.lexists(parent))


def available_memory() -> int | None:
    """Bytes that a program may still take: what the system has free, or what its control group leaves; else None."""
    found = []
    try:
        meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(meminfo["MemAvailable"].split()[0]) << 10)
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            found.append(int(limit) - int(stat["anon"]))
    except (OSError, ValueError, KeyError):
        pass  # Another system, or no control group: what was found before counts.
    return max(min(found), 0) if found else None
