"""Running a command as a process of its own, and what it needed: time, memory, disk.

Linux only: memory and disk are read from ``/proc`` while the command runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foundation.errors import ArcFlowError

_INTERVAL = 0.1
"""Seconds between two looks at the process."""
_DISK_EVERY = 20
"""Looks at the process between two looks at the disk, which cost more."""
_TAIL = 12
_DISK_BLOCK = 512
"""Bytes that one block means in ``getrusage`` and ``stat``, whatever the file system's blocks are."""
_STAGE = re.compile(r"^\[ *\d+ s\] ([^:]+):")
"""What a command prints into a log where a stage begins or goes on (``export.terminal``)."""


class MeasureError(ArcFlowError):
    """A measured command failed, or cannot be measured here."""


@dataclass(frozen=True)
class Stage:
    """A part of a command's work: its name as the command prints it, seconds, and most anonymous bytes in them."""

    name: str
    wall_s: float
    peak_anonymous: int


@dataclass(frozen=True)
class Measured:
    """What a command needed.

    wall_s: seconds from start to exit; cpu_s: processor seconds, all threads and children;
    peak_rss: most bytes of memory resident in one process, file mappings included, as the kernel counted it;
    peak_anonymous: most bytes that belong to no file, all processes together, sampled: what the machine must have, for
    mappings can be dropped; peak_disk: most bytes that the watched folder took up, sampled; written: bytes written to
    files (not to pipes), as the kernel counted them; stages: what it said it was at, in order.
    """

    wall_s: float
    cpu_s: float
    peak_rss: int
    peak_anonymous: int
    peak_disk: int
    written: int
    stages: tuple[Stage, ...] = ()


class _Stages:
    """What stage a command is at, by its log. A stage that comes again goes on."""

    def __init__(self, log: Path) -> None:
        self._log, self._read, self._rest = log, 0, b""
        self._now, self._since = "start", time.monotonic()
        self._found: dict[str, tuple[float, int]] = {}

    def look(self, anonymous: int) -> None:
        """Count the time since the last look, and ``anonymous`` bytes, for the stage of then."""
        now = time.monotonic()
        wall, peak = self._found.get(self._now, (0.0, 0))
        self._found[self._now] = (wall + now - self._since, max(peak, anonymous))
        self._since = now
        with self._log.open("rb") as stream:
            stream.seek(self._read)
            data = stream.read()
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if match := _STAGE.match(line.decode(errors="replace")):
                self._now = match[1]

    def found(self) -> tuple[Stage, ...]:
        return tuple(Stage(name, wall, peak) for name, (wall, peak) in self._found.items())


def measure(command: Sequence[str], folder: Path, log: Path, watch: Path, env: Mapping[str, str]) -> Measured:
    """Run ``command`` in ``folder`` with its output in ``log``, and watch the disk that the folder ``watch`` takes.

    Raises MeasureError with the log's end where the command fails. On any exception the command is ended first.
    """
    if not Path("/proc/self/status").exists():
        raise MeasureError("memory is read from /proc, which this system does not have; run this on Linux")
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=folder, env=dict(env), stdout=stream, stderr=subprocess.STDOUT)
    peak_anonymous = peak_disk = looks = 0
    stages = _Stages(log)
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            anonymous = sum(_anonymous(p) for p in _family(process.pid))
            peak_anonymous = max(peak_anonymous, anonymous)
            stages.look(anonymous)
            if looks % _DISK_EVERY == 0:
                peak_disk = max(peak_disk, disk_bytes(watch))
            looks += 1
            time.sleep(_INTERVAL)
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        lines = log.read_text(errors="replace").strip().splitlines()[-_TAIL:]
        ended = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise MeasureError(f"{' '.join(command)} ended with {ended}; the end of {log}: {' | '.join(lines)}")
    return Measured(
        wall_s=time.monotonic() - start,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss=usage.ru_maxrss * 1024,
        peak_anonymous=peak_anonymous,
        peak_disk=max(peak_disk, disk_bytes(watch)),
        written=usage.ru_oublock * _DISK_BLOCK,
        stages=stages.found(),
    )


def disk_bytes(path: Path) -> int:
    """Bytes that a file, or the files under a folder, take up: holes not counted, hard links counted once."""
    if path.is_file():
        return path.stat().st_blocks * _DISK_BLOCK
    taken: dict[tuple[int, int], int] = {}
    for root, _, files in os.walk(path):
        for file in files:
            try:
                status = (Path(root) / file).lstat()
            except OSError:
                continue  # It was removed since the folder was read.
            taken[status.st_dev, status.st_ino] = status.st_blocks * _DISK_BLOCK
    return sum(taken.values())


def _family(pid: int) -> list[int]:
    """The process and all of its descendants that live now."""
    found, index = [pid], 0
    while index < len(found):
        tasks = Path(f"/proc/{found[index]}/task")
        try:
            for task in tasks.iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            pass  # It ended meanwhile, or the kernel does not list children: then the process alone is counted.
        index += 1
    return found


def _anonymous(pid: int) -> int:
    """Bytes of the process's memory that belong to no file, swapped out or not; 0 when it has ended."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "VmSwap:")):
                total += int(line.split()[1]) * 1024
    except OSError:
        pass
    return total
