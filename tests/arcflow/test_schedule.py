from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcflow.errors import RecipeError
from arcflow.schedule import raw_times, sigmas

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "solver.json").read_text())


@pytest.mark.parametrize("row", GOLDEN["schedules"], ids=lambda r: f"{r['nfe']}-{r['shift']}-{r['final_step_ratio']}")
def test_golden(row: dict[str, Any]) -> None:
    assert sigmas(row["nfe"], row["shift"], row["final_step_ratio"]) == pytest.approx(row["sigmas"], rel=1e-14)


def test_two_steps_of_flux() -> None:
    assert sigmas(2, 3.2) == pytest.approx((1.0, 0.7619047619047619, 0.0))


@given(nfe=st.integers(1, 64), ratio=st.floats(0.01, 100.0), shift=st.floats(0.05, 20.0))
def test_falls_from_one_to_zero(nfe: int, ratio: float, shift: float) -> None:
    levels = sigmas(nfe, shift, ratio)
    assert len(levels) == nfe + 1 and levels[0] == pytest.approx(1.0) and levels[-1] == 0.0
    assert all(a > b for a, b in pairwise(levels))
    times = raw_times(nfe, ratio)
    if nfe > 1:
        assert (times[-2] - times[-1]) / (times[0] - times[1]) == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize(("nfe", "shift", "ratio"), [(0, 3.2, 1.0), (-1, 3.2, 1.0), (2, 0.0, 1.0), (2, 3.2, 0.0),
                                                     (2, float("nan"), 1.0), (2, 3.2, float("inf"))])  # fmt: skip
def test_refuses(nfe: int, shift: float, ratio: float) -> None:
    with pytest.raises(RecipeError):
        sigmas(nfe, shift, ratio)
