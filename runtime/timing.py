"""How long the stages of a run took."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_IMPORTED = time.perf_counter()


@dataclass(frozen=True)
class Span:
    """One passage through a stage, in seconds since the stopwatch was made."""

    stage: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Stopwatch:
    """Seconds by stage, and each passage through one; a stage that is entered again adds up."""

    def __init__(self, *stages: str) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(stages, 0.0)
        self.spans: list[Span] = []
        self.origin = time.perf_counter()
        """The moment that spans count from, as time.perf_counter tells it."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the duration of the block to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            self.add(Span(name, start - self.origin, end - self.origin))

    def add(self, span: Span) -> None:
        """Add a passage that was measured elsewhere."""
        self.seconds[span.stage] = self.seconds.get(span.stage, 0.0) + span.seconds
        self.spans.append(span)


def since_process_start() -> float:
    """Seconds since this process was started (Linux: to a clock tick, 10 ms); elsewhere, since this import."""
    try:
        # Field 22 of /proc/self/stat, counted after the command's name, which may hold blanks and parentheses.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        started = ticks / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)
    except (OSError, ValueError, AttributeError, IndexError):
        return time.perf_counter() - _IMPORTED
