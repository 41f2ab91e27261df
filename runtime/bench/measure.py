"""Measuring a pipeline: stages of many runs, and what the process holds."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foundation.measuring import Timing, timing

if TYPE_CHECKING:
    from runtime.result import Generation
    from runtime.timing import Span

Passage = tuple[str, float, float]
"""A stage, its start and its end in seconds."""

_EVALUATION = "evaluation"
_NUMBERED = {"backbone": _EVALUATION, "solver": "solver"}
_HOST = "host overhead"


@dataclass(frozen=True)
class Measurement:
    """Runs of one pipeline. total: of a whole run. stages: in order, host overhead (what is in none of them) last.

    idle: from the end of an evaluation to the start of the next, what no stage covers; None with one evaluation.
    timeline: the spans of the run whose total is the median, (stage, start, end) in seconds.
    """

    total: Timing
    stages: Mapping[str, Timing]
    idle: Timing | None
    timeline: tuple[Passage, ...]


def measure(
    generate: Callable[[int], Generation], runs: int, warm_up: int, warm: Callable[[], None] = lambda: None
) -> Measurement:
    """Time ``generate(seed)`` over ``runs`` seeds, after ``warm_up`` that do not count. Needs runs >= 1.

    warm: called between the two.
    """
    walls: list[float] = []
    passages: list[tuple[Passage, ...]] = []
    for attempt in range(warm_up + runs):
        if attempt == warm_up:
            warm()
        start = time.perf_counter()
        made = generate(attempt)
        wall = time.perf_counter() - start
        if attempt >= warm_up:
            walls.append(wall)
            passages.append(name_spans(made.spans))
    seconds: dict[str, list[float]] = {}
    for wall, spans in zip(walls, passages, strict=True):
        for stage in dict.fromkeys(name for name, _, _ in spans):  # Text encoders and conditioner are one, each a span.
            seconds.setdefault(stage, []).append(sum(end - begin for name, begin, end in spans if name == stage))
        seconds.setdefault(_HOST, []).append(wall - covered(spans))
    seconds[_HOST] = seconds.pop(_HOST)  # Last.
    idle = [gap for spans in passages for gap in gaps(spans)]
    middle = sorted(range(len(walls)), key=walls.__getitem__)[len(walls) // 2]
    return Measurement(
        total=timing(walls),
        stages={name: timing(values) for name, values in seconds.items()},
        idle=timing(idle) if idle else None,
        timeline=passages[middle],
    )


def covered(spans: Sequence[Passage], start: float = -math.inf, end: float = math.inf) -> float:
    """Seconds from ``start`` to ``end`` that are in a span; where several are at once, they count once."""
    seconds, reached = 0.0, start
    for _, begin, finish in sorted(spans, key=lambda span: span[1]):
        begin, finish = max(begin, reached), min(finish, end)
        if finish > begin:
            seconds, reached = seconds + finish - begin, finish
    return seconds


def gaps(spans: Sequence[Passage]) -> list[float]:
    """Between each evaluation and the next, the seconds that are in no span: nothing was known to run."""
    evaluations = [span for span in spans if span[0].startswith(f"{_EVALUATION} ")]
    return [
        max(following - end, 0.0) - covered(spans, end, following)
        for (_, _, end), (_, following, _) in itertools.pairwise(evaluations)
    ]


def name_spans(spans: Sequence[Span]) -> tuple[Passage, ...]:
    """Spans as (name, start, end), evaluations and solver steps numbered from 1 in the order they ran."""
    seen: dict[str, int] = {}
    named = []
    for span in spans:
        name = _NUMBERED.get(span.stage, span.stage)
        if span.stage in _NUMBERED:
            seen[name] = seen.get(name, 0) + 1
            name = f"{name} {seen[name]}"
        named.append((name, span.start, span.end))
    return tuple(named)


def peak_memory() -> Mapping[str, int]:
    """Bytes that this process has held at most, by kind ("host")."""
    try:
        import resource
    except ImportError:  # Not a Unix.
        return {}
    return {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
