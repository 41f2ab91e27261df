"""The claims that a study decides, and by how many standard errors, whatever the records say.

A difference between two variants is taken noise by noise and training seed by training seed, so that what both have in
common cancels. Its standard error counts noises and seeds as two independent sources: the variance of the means over
seeds, by noise, over the number of noises, and that of the means over noises, by seed, over the number of seeds. With
one seed nothing is known of the second, and nothing is decided.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from arcflow.recipe import Recipe
from arcflow.studying import variants as names
from arcflow.studying.ledger import Record

DECIDED = 3.0
"""Standard errors from which on a claim holds, or does not."""
LIMIT = 0.05
"""The share of the backbone under which the method claims to train."""
TIMES = 4.0
"""How many times fewer iterations the method claims to need than full fine-tuning."""
EARLY = 0.25
"""The share of LoRA's iterations at which its error is the one to reach."""
HELD = 0.95
"""Of the teacher's diversity, what counts as held."""
WORSE = 1.10
"""Of the teacher's Frechet distance, what counts as its quality."""

_RIVALS = {
    names.LINEAR: "straight (one mode)",
    names.PIECEWISE: "piecewise constant (PDD)",
    names.MIDPOINT: "piecewise constant by midpoints (PDD)",
    names.MIXTURE: "a Gaussian mixture (pi-Flow)",
}
"""Heads that the method's own is compared with, as claims call them."""

Verdict = Literal["holds", "does not hold", "not decided"]
Runs = Mapping[str, Sequence[Record]]
"""Records by variant, ordered by seed."""


@dataclass(frozen=True)
class Claim:
    """A statement and what is found of it.

    margin: by how much it holds, in the units of ``measure``; below 0 by how much it does not. standard_error: of the
    margin; None where it is exact, or cannot be known.
    """

    statement: str
    measure: str
    margin: float
    standard_error: float | None
    verdict: Verdict
    note: str = ""

    @property
    def sigmas(self) -> float | None:
        """The margin in standard errors."""
        return self.margin / self.standard_error if self.standard_error else None


def claims(recipe: Recipe, runs: Runs, teacher: Record) -> list[Claim]:
    """All claims of which there are records: variants that have not been run leave theirs out."""
    nfe = str(recipe.distill.nfe)
    own = names.OWN

    def better(statement: str, ours: str, theirs: str, count: str = nfe) -> Iterable[Claim]:
        return _better(statement, runs, ours, theirs, lambda record: record.few[count].errors)

    found: list[Claim] = []
    for count in sorted({*map(str, recipe.evaluate.nfe), nfe}, key=lambda one: (one != nfe, int(one))):
        where = "" if count == nfe else f", at {count}"
        for rival, what in _RIVALS.items():
            found += better(f"curved beats {what}{where}", own, rival, count)
        found += better(f"wide gammas beat the recipe's{where}", names.WIDE, own, count)
    for name in runs:
        if name.startswith(f"{own}-"):
            modes = name.removeprefix(f"{own}-")
            found += better(f"{recipe.student.modes} modes beat {modes}", own, name)
        if name.startswith("rank-"):
            found += better(f"rank {recipe.student.rank} beats rank {name.removeprefix('rank-')}", own, name)
    found += _share(runs)
    for name in runs:
        if name.startswith(f"{names.FULL}-"):
            full = f"full fine-tuning at {name.removeprefix(f'{names.FULL}-')} of the rate"
            found += better(f"LoRA beats {full}", own, name)
            found += _faster(runs, name, full)
    found += better("dropout pays", own, names.NO_DROPOUT)
    found += _diversity(runs, teacher)
    found += _quality(runs, teacher, recipe)
    few = teacher.few
    for count in sorted((name for name in few if name != str(recipe.evaluate.reference_steps)), key=int):
        statement = f"{nfe} evaluations beat the teacher's {count} steps"
        found += _against(statement, runs, few[count].errors, nfe)
    found += _better("training in FP8 pays in FP8", runs, names.IN_FP8, own, lambda record: record.fp8)
    for count in dict.fromkeys(map(str, recipe.study.several_nfe)):
        what = "pays" if count != nfe else "costs nothing"
        found += better(f"training for several NFE {what} at {count}", names.SEVERAL, own, count)
    return found


def paired(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """Mean of theirs - ours, [seeds][noises] each, and its standard error; None with one seed or noise."""
    gains = [[b - a for a, b in zip(one, other, strict=True)] for one, other in zip(ours, theirs, strict=True)]
    by_seed = [statistics.fmean(row) for row in gains]
    by_noise = [statistics.fmean(column) for column in zip(*gains, strict=True)]
    mean = statistics.fmean(by_seed)
    if min(len(by_seed), len(by_noise)) < 2:
        return mean, None
    return mean, math.sqrt(sum(statistics.variance(part) / len(part) for part in (by_seed, by_noise)))


def decided(margin: float, error: float | None) -> Verdict:
    """By ``DECIDED`` standard errors; without one nothing is."""
    if error is None or abs(margin) < DECIDED * error or margin == 0.0:
        return "not decided"
    return "holds" if margin > 0 else "does not hold"


def iterations_to(curve: Sequence[tuple[int, float, float]], error: float) -> float | None:
    """Iterations after which a curve is at or below an error for the first time, between its points linear."""
    before: tuple[int, float, float] | None = None
    for point in curve:
        if point[2] <= error:
            if before is None or before[2] <= point[2]:
                return float(point[0])
            part = (before[2] - error) / (before[2] - point[2])
            return before[0] + part * (point[0] - before[0])
        before = point
    return None


def at(curve: Sequence[tuple[int, float, float]], share: float) -> tuple[float, float]:
    """Iterations and error at that share of a curve's iterations, between its points linear."""
    wanted = share * curve[-1][0]
    before = curve[0]
    for point in curve:
        if point[0] >= wanted:
            if point[0] == before[0]:
                return float(point[0]), point[2]
            part = (wanted - before[0]) / (point[0] - before[0])
            return wanted, before[2] + part * (point[2] - before[2])
        before = point
    return float(before[0]), before[2]


def _better(
    statement: str, runs: Runs, ours: str, theirs: str, errors: Callable[[Record], Sequence[float]]
) -> Iterable[Claim]:
    """That ours has the lower errors, in pairs of the seeds that both have."""
    pairs = _pairs(runs, ours, theirs)
    if not pairs:
        return
    one, other = ([errors(pair[side]) for pair in pairs] for side in (0, 1))
    margin, error = paired(one, other)
    mine, others = (statistics.fmean(map(statistics.fmean, side)) for side in (one, other))
    note = f"{mine:.4f} against {others:.4f}"
    yield Claim(
        statement,
        "relative L2",
        margin,
        error,
        decided(margin, error),
        f"{note}, {margin / others:+.1%}{_of(len(pairs))}",
    )


def _against(statement: str, runs: Runs, theirs: Sequence[float], nfe: str) -> Iterable[Claim]:
    records = runs.get(names.OWN, ())
    if records:
        ours = [record.few[nfe].errors for record in records]
        margin, error = paired(ours, [theirs] * len(ours))
        note = f"{statistics.fmean(map(statistics.fmean, ours)):.4f} against {statistics.fmean(theirs):.4f}"
        yield Claim(statement, "relative L2", margin, error, decided(margin, error), note + _of(len(ours)))


def _share(runs: Runs) -> Iterable[Claim]:
    for record in runs.get(names.OWN, ())[:1]:
        margin = LIMIT - record.share
        verdict: Verdict = "holds" if margin > 0 else "does not hold"
        yield Claim(f"under {LIMIT:.0%} is trained", "share", margin, None, verdict, f"{record.share:.2%}, counted")


def _faster(runs: Runs, theirs: str, full: str) -> Iterable[Claim]:
    pairs = _pairs(runs, names.OWN, theirs)
    if not pairs:
        return
    ratios, reached = [], 0
    for lora, other in pairs:
        spent, error = at(lora.curve, EARLY)
        needed = iterations_to(other.curve, error)
        reached += needed is not None
        ratios.append((other.curve[-1][0] if needed is None else needed) / spent)
    margin = statistics.fmean(ratios) - TIMES
    error_of = math.sqrt(statistics.variance(ratios) / len(ratios)) if len(ratios) > 1 else None
    verdict = decided(margin, error_of)
    if not reached and len(ratios) > 1 and margin >= 0:
        verdict = "holds"  # Nowhere reached: each ratio is at least what is told.
    note = f"{statistics.fmean(ratios):.2f} times"
    note += "" if reached == len(pairs) else f" or more: not reached in {len(pairs) - reached} of {len(pairs)}"
    statement = f"{TIMES:g} times fewer iterations than {full}"
    yield Claim(statement, f"ratio of iterations to LoRA's error at {EARLY:.0%}", margin, error_of, verdict, note)


def _diversity(runs: Runs, teacher: Record) -> Iterable[Claim]:
    records = runs.get(names.OWN, ())
    if records:
        wanted = [[HELD] * len(teacher.diversity)] * len(records)
        found = [[a / b for a, b in zip(record.diversity, teacher.diversity, strict=True)] for record in records]
        margin, error = paired(wanted, found)
        note = f"{margin + HELD:.3f} of the teacher's{_of(len(records))}"
        statement = f"diversity is held ({HELD:g} of the teacher's or more)"
        yield Claim(
            statement, "distance within a prompt over the teacher's", margin, error, decided(margin, error), note
        )


def _quality(runs: Runs, teacher: Record, recipe: Recipe) -> Iterable[Claim]:
    nfe, many = str(recipe.distill.nfe), teacher.few[str(recipe.evaluate.reference_steps)]
    found = [record.few[nfe].frechet for record in runs.get(names.OWN, ())]
    distances = [value for value in found if value is not None]
    if distances and many.frechet is not None:
        margin = WORSE * many.frechet - statistics.fmean(distances)
        error = math.sqrt(statistics.variance(distances) / len(distances)) if len(distances) > 1 else None
        note = f"{statistics.fmean(distances):.3f} against {many.frechet:.3f}, seeds alone are counted"
        statement = f"{nfe} evaluations at the teacher's quality (within {WORSE - 1:.0%})"
        yield Claim(statement, "Frechet distance to real images", margin, error, decided(margin, error), note)


def _pairs(runs: Runs, ours: str, theirs: str) -> list[tuple[Record, Record]]:
    other = {record.seed: record for record in runs.get(theirs, ())}
    return [(record, other[record.seed]) for record in runs.get(ours, ()) if record.seed in other]


def _of(seeds: int) -> str:
    return f", {seeds} seeds" if seeds > 1 else ", 1 seed"
