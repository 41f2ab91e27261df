"""Whether this machine has what a build needs, known before it starts: memory, folders that can be written, room."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engines.bundle import is_folder
from engines.schema import MANIFEST_NAME
from export.errors import ExportError


@dataclass(frozen=True)
class Needs:
    """What some work takes at most, estimated before it starts.

    memory: bytes at the peak; disk: bytes; seconds: on two cores, None where that is not known.
    """

    memory: int
    disk: int = 0
    seconds: float | None = None

    def __str__(self) -> str:
        parts = [f"{amount(self.memory)} of memory"]
        parts += [f"{amount(self.disk)} of disk"] if self.disk else []
        if self.seconds is not None:
            minutes = max(self.seconds / 60, 1)
            parts.append(f"{minutes / 60:,.1f} h" if minutes > 90 else f"{minutes:,.0f} min")
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)

    def check(self, free: int | None = None, advice: str = "close other programs, or take a larger machine") -> None:
        """Raise ExportError where the memory is not there. free: what there is, None for this machine's."""
        free = available_memory() if free is None else free
        if free is not None and free < self.memory:
            raise ExportError(f"about {amount(self.memory)} of memory are needed, {amount(free)} are free: {advice}")


def one_after_the_other(needs: Iterable[Needs]) -> Needs:
    """What several pieces of work take: the greatest memory, all of the disk, all of the time where that is known."""
    parts = list(needs)
    seconds = [part.seconds for part in parts if part.seconds is not None]
    return Needs(
        max(part.memory for part in parts),
        sum(part.disk for part in parts),
        sum(seconds) if len(seconds) == len(parts) else None,
    )


def amount(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{math.ceil(size / 1e6)} MB"


def check_out(out: Path) -> None:
    """Raise ExportError unless ``out`` is free, empty, or a bundle: anything else must not be replaced."""
    check_place(out.parent, "--out", shown=out)
    replaceable = is_folder(out) and ((out / MANIFEST_NAME).is_file() or not any(out.iterdir()))
    if os.path.lexists(out) and not replaceable:
        raise ExportError(f"{out} exists and is not a bundle: it will not be replaced; choose another --out")


def check_out_file(out: Path) -> None:
    """Raise ExportError where the file could not be written: a long run must not end so."""
    check_place(out.parent, "--out", shown=out)
    if out.is_dir():
        raise ExportError(f"cannot write {out}: it is a folder; give --out the name of a file")


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


def held(folder: Path) -> int:
    """Bytes of the files under ``folder``; 0 where there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


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
