"""Claims: differences in pairs, two sources of error, verdicts, crossings of curves; whatever the records say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import pytest

from arcflow.recipe import Recipe
from arcflow.studying.claims import at, claims, decided, iterations_to, paired
from arcflow.studying.ledger import Few, Point, Record

CURVE: tuple[Point, ...] = ((20, 1.0, 0.8), (40, 2.0, 0.6), (60, 3.0, 0.5), (80, 4.0, 0.4))


def record(
    variant: str, seed: int, errors: Sequence[float], curve: tuple[Point, ...] = CURVE, fp8: Sequence[float] = ()
) -> Record:
    few = {str(count): Few(errors=tuple(errors), frechet=5.0) for count in (1, 2, 4)}
    return Record(
        f"{variant}{seed}", variant, seed, "fp32", few, diversity=(0.99, 1.0), share=0.04, curve=curve,
        fp8=tuple(fp8 or errors),
    )  # fmt: skip


def teacher() -> Record:
    few = {str(steps): Few(errors=(0.5, 0.6, 0.4), frechet=4.9) for steps in (1, 2, 4)}
    return Record("t", "teacher", 0, "fp32", {**few, "10": Few(frechet=4.8)}, diversity=(1.0, 1.0))


def test_pairs_and_their_error() -> None:
    ours, theirs = [[1.0, 2.0, 3.0], [1.5, 2.0, 2.5]], [[2.0, 2.5, 3.5], [2.0, 3.0, 3.0]]
    gains = [[1.0, 0.5, 0.5], [0.5, 1.0, 0.5]]
    by_noise, by_seed = [0.75, 0.75, 0.5], [statistics.fmean(row) for row in gains]
    mean, error = paired(ours, theirs)
    assert mean == pytest.approx(statistics.fmean(by_noise))
    assert error == pytest.approx(math.sqrt(statistics.variance(by_noise) / 3 + statistics.variance(by_seed) / 2))
    assert paired(ours[:1], theirs[:1]) == (pytest.approx(2 / 3), None)


def test_what_both_have_in_common_cancels() -> None:
    hard = [10.0, 0.1, 5.0]
    mean, error = paired([hard, hard], [[h + 0.2 for h in hard]] * 2)
    assert mean == pytest.approx(0.2) and error == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("margin", "error", "verdict"),
    [
        (0.31, 0.1, "holds"), (0.29, 0.1, "not decided"), (-0.31, 0.1, "does not hold"), (-0.2, 0.1, "not decided"),
        (9.0, None, "not decided"), (0.0, 0.0, "not decided"), (0.1, 0.0, "holds"),
    ],
)  # fmt: skip
def test_verdicts(margin: float, error: float | None, verdict: str) -> None:
    assert decided(margin, error) == verdict


def test_crossings_lie_between_the_points() -> None:
    assert iterations_to(CURVE, 0.55) == pytest.approx(50.0)
    assert iterations_to(CURVE, 0.8) == 20.0 and iterations_to(CURVE, 0.9) == 20.0
    assert iterations_to(CURVE, 0.39) is None
    assert at(CURVE, 0.25) == (20.0, 0.8)
    assert at(CURVE, 0.625) == pytest.approx((50.0, 0.55))
    assert at(CURVE, 1.0) == (80.0, 0.4)


def test_every_claim_is_told_and_none_of_what_was_not_run(recipe: Recipe) -> None:
    few = {"arcflow": [0.1, 0.12, 0.11], "linear": [0.2, 0.21, 0.23]}
    runs = {name: [record(name, seed, errors) for seed in (0, 1, 2)] for name, errors in few.items()}
    found = {one.statement: one for one in claims(recipe, runs, teacher())}
    curved = found["curved beats straight (one mode)"]
    assert curved.verdict == "holds" and curved.margin == pytest.approx(0.31 / 3)
    assert curved.sigmas is not None and curved.sigmas > 3 and "3 seeds" in curved.note
    assert found["under 5% is trained"].verdict == "holds"
    assert found["2 evaluations beat the teacher's 4 steps"].verdict == "holds"
    assert found["diversity is held (0.95 of the teacher's or more)"].margin == pytest.approx(0.995 - 0.95)
    assert found["2 evaluations at the teacher's quality (within 10%)"].margin == pytest.approx(1.1 * 4.8 - 5.0)
    assert not [one for one in found if "PDD" in one or "FP8" in one or "NFE" in one or "full" in one]


def test_a_claim_that_fails_says_so(recipe: Recipe) -> None:
    runs = {"arcflow": [record("arcflow", s, [0.3, 0.31]) for s in (0, 1)]}
    runs["linear"] = [record("linear", s, [0.2, 0.22]) for s in (0, 1)]
    found = next(iter(claims(recipe, runs, teacher_of(2))))
    assert found.verdict == "does not hold" and found.margin < 0


def test_one_seed_decides_nothing(recipe: Recipe) -> None:
    runs = {name: [record(name, 0, [v, v + 0.01])] for name, v in (("arcflow", 0.1), ("linear", 0.5))}
    assert next(iter(claims(recipe, runs, teacher_of(2)))).verdict == "not decided"


def teacher_of(noises: int) -> Record:
    whole = teacher()
    few = {steps: Few(errors=one.errors[:noises], frechet=one.frechet) for steps, one in whole.few.items()}
    return Record("t", "teacher", 0, "fp32", few, diversity=whole.diversity)


def test_how_many_times_faster(recipe: Recipe) -> None:
    slow: tuple[Point, ...] = ((20, 1.0, 1.2), (40, 2.0, 1.0), (60, 3.0, 0.9), (80, 4.0, 0.85))
    steady: tuple[Point, ...] = ((20, 1.0, 1.0), (40, 2.0, 0.9), (60, 3.0, 0.7), (80, 4.0, 0.6))
    runs = {"arcflow": [record("arcflow", s, [0.1, 0.2]) for s in (0, 1)]}
    runs["full-0.3"] = [record("full-0.3", s, [0.1, 0.2], slow) for s in (0, 1)]
    runs["full-0.1"] = [record("full-0.1", s, [0.1, 0.2], steady) for s in (0, 1)]
    found = {one.statement: one for one in claims(recipe, runs, teacher_of(2))}
    never = found["4 times fewer iterations than full fine-tuning at 0.3 of the rate"]
    assert never.margin == pytest.approx(0.0) and never.verdict == "holds" and "not reached in 2 of 2" in never.note
    reached = found["4 times fewer iterations than full fine-tuning at 0.1 of the rate"]
    assert reached.margin == pytest.approx(50 / 20 - 4) and reached.verdict == "does not hold"


def test_fp8_and_several_evaluations(recipe: Recipe) -> None:
    few = replace(recipe.study, several_nfe=(1, 2))
    runs = {"arcflow": [record("arcflow", s, [0.1, 0.2], fp8=[0.3, 0.41]) for s in (0, 1)]}
    runs["in-fp8"] = [record("in-fp8", s, [0.1, 0.2], fp8=[0.2, 0.3]) for s in (0, 1)]
    runs["several-nfe"] = [record("several-nfe", s, [0.1, 0.21]) for s in (0, 1)]
    found = {one.statement: one for one in claims(replace(recipe, study=few), runs, teacher_of(2))}
    assert found["training in FP8 pays in FP8"].margin == pytest.approx(0.105)
    assert found["training for several NFE pays at 1"].margin == pytest.approx(-0.005)
    assert "training for several NFE costs nothing at 2" in found
