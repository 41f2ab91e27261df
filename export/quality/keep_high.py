"""The fewest layers that FP8 must leave alone for its error to stay within a limit.

Greedy: layers are ranked by how much FP8 hurts them, and the error is measured with so many of the first of them kept
high, several numbers abreast. What was measured is written aside, so that a search that was stopped goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engines.schema import Gate
from export.quality.gate import holds
from foundation.files import atomic_file

ABREAST = 4
"""Numbers of layers that are tried together."""

Kept = tuple[str, ...]
Trial = Callable[[Sequence[Kept]], Sequence[Gate]]
"""The figures with these layers kept high: a gate for each choice."""

Ranking = Callable[[bool], Sequence[str]]
"""All layers, the one that FP8 hurts most first. Told whether it is needed: where it is not, and would cost a
measurement, it may be empty."""


@dataclass(frozen=True)
class Held:
    """What was found. kept: layers, the one that FP8 hurts most first; gate: its figures, which may miss the limit
    where even half of all layers are not enough."""

    kept: Kept
    gate: Gate


class _Notes(msgspec.Struct, forbid_unknown_fields=True):
    """What is known already: the ranking, and figures by digest of what was kept."""

    ranking: list[str] = msgspec.field(default_factory=list)
    trials: dict[str, Gate] = msgspec.field(default_factory=dict)


def search(trial: Trial, ranking: Ranking, limit: float, rounds: int, path: Path) -> Held:
    """Find the fewest layers at the front of the ranking that hold the limit of every error.

    rounds: of trials after it, at most: with enough of them no fewer layers hold, else the number is within a step.
    path: of the notes. Raises ArcFlowError where they cannot be written.
    """
    notes = _read(path)

    def measured(choices: Sequence[Kept]) -> list[Gate]:
        new = [kept for kept in choices if _key(kept) not in notes.trials]
        if new:
            notes.trials |= zip(map(_key, new), trial(new), strict=True)
            rank(needed=False)
        return [_limited(notes.trials[_key(kept)], limit) for kept in choices]

    def rank(needed: bool) -> None:
        notes.ranking = notes.ranking or list(ranking(needed))
        with atomic_file(path) as temporary:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(notes), indent=1) + b"\n")

    (first,) = measured([()])
    if holds(first):
        return Held((), first)
    rank(needed=True)
    most = max(len(notes.ranking) // 2, 1)
    found: dict[int, Gate] = {0: first}
    counts = sorted({max(most >> step, 1) for step in range(ABREAST)})
    for _ in range(rounds):
        kept = [tuple(notes.ranking[:count]) for count in counts]
        found |= zip(counts, measured(kept), strict=True)
        counts = _between(found)
        if not counts:
            break
    good = [count for count, gate in found.items() if holds(gate)]
    count = min(good, default=most)
    return Held(tuple(notes.ranking[:count]), found[count])


def _limited(gate: Gate, limit: float) -> Gate:
    """The same figures; what was measured once serves every limit."""
    results = [msgspec.structs.replace(result, limit=limit) for result in gate.results]
    return msgspec.structs.replace(gate, results=results)


def _between(found: Mapping[int, Gate]) -> list[int]:
    """Numbers to try next: above the greatest that misses below the least that holds."""
    good = [count for count, gate in found.items() if holds(gate)]
    if not good:
        return []
    low = max(count for count in found if count < min(good))
    room = range(low + 1, min(good))
    return sorted({room[len(room) * step // (ABREAST + 1)] for step in range(1, ABREAST + 1)}) if room else []


def _key(kept: Kept) -> str:
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def _read(path: Path) -> _Notes:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Notes)
    except (OSError, msgspec.MsgspecError):
        return _Notes()  # Missing or damaged: it only saves time.
