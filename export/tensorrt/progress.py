"""The builder's nested phases as one fraction that only grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

_STEP = 1 / 1000
"""Less progress than this is not worth a call, unless a phase begins."""


@dataclass(frozen=True)
class Progress:
    """How far a build is: ``fraction`` in [0, 1], never less than before, and the phase that is at work."""

    fraction: float
    phase: str


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Split:
    """Which part of a build the builder's phases take, and where the writing of the plan begins, as fractions.

    Between the two it says nothing. Of TensorRT for RTX (measured with 0.8 GB of weights) the phases are a few per
    cent of the time and the writing is 40; data-centre TensorRT spends its time in the phases that time kernels.
    """

    phases: float
    writing: float


class Whole:
    """Phases, and then bytes, of one build as one fraction. expected: bytes of the plan, about."""

    def __init__(self, report: Report, split: Split, expected: int) -> None:
        self._report, self._split, self._expected = report, split, max(expected, 1)

    def phase(self, progress: Progress) -> None:
        """The builder is that far in its phases."""
        self._report(Progress(progress.fraction * self._split.phases, progress.phase))

    def written(self, size: int) -> None:
        """So many bytes of the plan are on disk."""
        done = min(size / self._expected, 1.0)
        self._report(Progress(self._split.writing + (1 - self._split.writing) * done, "writing"))


@dataclass
class _Phase:
    """A phase at work: the name of the phase it is a step of (None: the whole build), its steps, those done."""

    parent: str | None
    steps: int
    done: int = 0


class Flattened:
    """Phases as the builder announces them, from whichever thread, to calls of ``report``.

    A phase fills the step of its parent that is under way: the fraction of a phase is
    ``(steps done + fraction of its furthest child) / steps``.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._lock = Lock()
        self._phases: dict[str, _Phase] = {}
        self._last = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins, inside ``parent``."""
        with self._lock:
            self._phases[name] = _Phase(parent if parent in self._phases and parent != name else None, max(steps, 1))
            self._tell(name, always=True)

    def step(self, name: str, step: int) -> None:
        """A step (from 0) of a phase is done."""
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = max(phase.done, min(step + 1, phase.steps))
                self._tell(name)

    def finish(self, name: str) -> None:
        """A phase has ended, whole or not."""
        with self._lock:
            self._phases.pop(name, None)

    def _tell(self, name: str, always: bool = False) -> None:
        roots = [root for root, phase in self._phases.items() if phase.parent is None]
        fraction = max((self._fraction(root) for root in roots), default=0.0)
        if always or fraction - self._last >= _STEP:
            self._last = max(self._last, fraction)
            self._report(Progress(self._last, name))

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        children = [child for child, other in self._phases.items() if other.parent == name]
        inside = max((self._fraction(child) for child in children), default=0.0)
        return min(phase.done + inside, phase.steps) / phase.steps


def make_monitor(trt: Any, report: Report) -> Any:
    """TensorRT's progress monitor, which never asks it to stop. ``report`` must not raise."""
    flattened = Flattened(report)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            flattened.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            flattened.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            flattened.finish(phase_name)

    return Monitor()
