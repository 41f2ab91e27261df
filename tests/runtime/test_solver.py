"""The numpy solver: golden vectors, and the laws that the closed form obeys."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import solver
from runtime.solver import MomentumField
from tests.runtime.small_bundle import random_field

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "solver.json").read_text(encoding="utf-8"))
TOLERANCE = {np.float32: 1e-6, np.float64: 1e-12}
_levels = st.lists(st.floats(0, 1), min_size=4, max_size=4).map(lambda values: sorted(values, reverse=True))
_seeds = st.integers(0, 2**32 - 1)


def _field(seed: int, dtype: type = np.float64, modes: int = 4) -> MomentumField:
    return MomentumField(*(part.astype(dtype) for part in random_field(seed, (2, 3), modes)))


def _velocity(field: MomentumField, sigma_src: float, sigma: float) -> Any:
    gates, rates = solver._coefficients(field)
    return solver._mix(field.means, gates * np.exp(rates * (sigma_src - sigma)))


def _error(actual: Any, expected: Any) -> float:
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(np.asarray(actual, dtype=np.float64) - expected).max()) / scale


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_golden_cases(case: dict[str, Any], dtype: type) -> None:
    field = MomentumField(*(_array(case, name, dtype) for name in ("means", "logweights", "loggammas")))
    x_a = np.array(case["x_a"], dtype=dtype)
    moved = x_a + solver.displacement(field, case["sigma_src"], case["sigma_a"], case["sigma_b"])
    speed = _velocity(field, case["sigma_src"], case["sigma_b"])
    assert moved.dtype == speed.dtype == dtype
    assert _error(moved, np.array(case["x_b"])) < TOLERANCE[dtype]
    assert _error(speed, np.array(case["velocity_at_b"])) < TOLERANCE[dtype]


def _array(case: dict[str, Any], name: str, dtype: type) -> Any:
    shape = case["shape"]
    modes = shape["modes"] - (name == "loggammas")
    width = shape["channels"] if name == "means" else shape["positions"]
    # The reshape gives K = 1 its empty axis back, which nested lists cannot say.
    return np.array(case[name], dtype=dtype).reshape(shape["batch"], shape["tokens"], modes, width)


@pytest.mark.parametrize("entry", GOLDEN["schedules"], ids=lambda e: f"{e['nfe']}-{e['shift']}-{e['final_step_ratio']}")
def test_golden_schedules(entry: dict[str, Any]) -> None:
    levels = solver.sigmas(entry["nfe"], entry["shift"], entry["final_step_ratio"])
    np.testing.assert_allclose(levels, entry["sigmas"], rtol=0, atol=1e-15)


@pytest.mark.parametrize("entry", GOLDEN["phi1"], ids=lambda entry: str(entry["z"]))
def test_golden_phi1(entry: dict[str, float]) -> None:
    assert float(solver.phi1(np.array(entry["z"]))) == pytest.approx(entry["value"], rel=1e-15)


@given(st.floats(-1e-2 * 1.01, -1e-2 * 0.99) | st.floats(1e-2 * 0.99, 1e-2 * 1.01))
def test_phi1_has_no_step_where_its_formula_changes(z: float) -> None:
    below, above = solver.phi1(np.array([z, np.nextafter(z, 1.0)]))
    assert above - below == pytest.approx(0.0, abs=4e-16)


@given(seed=_seeds, levels=_levels)
def test_two_moves_are_one(seed: int, levels: list[float]) -> None:
    src, a, b, c = levels
    field = _field(seed)
    whole = solver.displacement(field, src, a, c)
    parts = solver.displacement(field, src, a, b) + solver.displacement(field, src, b, c)
    np.testing.assert_allclose(whole, parts, rtol=1e-11, atol=1e-12)


@given(seed=_seeds, levels=_levels)
def test_the_velocity_is_the_slope(seed: int, levels: list[float]) -> None:
    src, a, b, _ = levels
    field = _field(seed)
    h = 1e-6
    slope = (solver.displacement(field, src + h, a + h, b - h) - solver.displacement(field, src + h, a + h, b + h)) / (
        -2 * h
    )
    np.testing.assert_allclose(slope, _velocity(field, src + h, b), rtol=1e-6, atol=1e-6)


@given(seed=_seeds, levels=_levels)
def test_one_mode_is_an_euler_step(seed: int, levels: list[float]) -> None:
    src, a, b, _ = levels
    means = _field(seed, modes=1).means
    shape = means.shape[:2]
    field = MomentumField(means, np.zeros((*shape, 1, 4)), np.zeros((*shape, 0, 4)))
    np.testing.assert_allclose(solver.displacement(field, src, a, b), -(a - b) * means[:, :, 0], rtol=1e-13, atol=1e-15)


def test_gates_and_rates_are_shared_by_the_channels_of_a_position() -> None:
    field = _field(0)
    same = np.ones_like(field.means)
    moved = solver.displacement(MomentumField(same, field.logweights, field.loggammas), 1.0, 1.0, 0.3)
    blocks = moved.reshape(2, 3, 4, 4)
    assert (blocks == blocks[:, :, :1]).all()
    assert not (blocks == blocks[..., :1]).all()


def test_levels_may_differ_by_row() -> None:
    field = _field(1)
    rows = solver.displacement(field, np.array([1.0, 0.7]), np.array([0.9, 0.7]), np.array([0.2, 0.0]))
    for row, (src, a, b) in enumerate([(1.0, 0.9, 0.2), (0.7, 0.7, 0.0)]):
        np.testing.assert_array_equal(rows[row], solver.displacement(field, src, a, b)[row])


@given(nfe=st.integers(1, 64), shift=st.floats(0.1, 10), ratio=st.floats(0.05, 20))
def test_schedules_fall_from_one_to_zero(nfe: int, shift: float, ratio: float) -> None:
    levels = solver.sigmas(nfe, shift, ratio)
    assert len(levels) == nfe + 1
    assert levels[0] == pytest.approx(1.0)
    assert levels[-1] == 0.0
    assert all(a > b for a, b in itertools.pairwise(levels))


@given(nfe=st.integers(2, 64), ratio=st.floats(0.05, 20))
def test_the_last_segment_is_ratio_times_the_others(nfe: int, ratio: float) -> None:
    times = solver.raw_times(nfe, ratio)
    spans = [a - b for a, b in itertools.pairwise(times)]
    assert all(span == pytest.approx(spans[0]) for span in spans[:-1])
    assert spans[-1] == pytest.approx(ratio * spans[0])


def test_the_released_schedule() -> None:
    assert solver.sigmas(2, 3.2) == pytest.approx((1.0, 1.6 / 2.1, 0.0))


@given(count=st.integers(0, 64), shift=st.floats(0.1, 10))
def test_previews_lie_between_noise_and_image(count: int, shift: float) -> None:
    levels = solver.preview_sigmas(count, shift)
    assert len(levels) == count
    assert list(levels) == sorted(levels, reverse=True)
    assert all(0 < sigma < 1 for sigma in levels)
    assert all(math.isfinite(sigma) for sigma in levels)
