"""The closed form against golden vectors, quadrature and its own identities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arcflow.field import MomentumField, displacement, mean_velocity, phi1, velocity

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "solver.json").read_text())
LIMITS = {torch.float32: 1e-6, torch.float64: 1e-12}


def random_field(
    seed: int, batch: int = 2, tokens: int = 3, modes: int = 4, channels: int = 8, spread: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> MomentumField:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(batch, tokens, modes, channels, generator=g, dtype=torch.float64)
    logits = torch.randn(batch, tokens, modes, 4, generator=g, dtype=torch.float64)
    logs = spread * torch.randn(batch, tokens, modes - 1, 4, generator=g, dtype=torch.float64)
    return MomentumField(means.to(dtype), torch.log_softmax(logits, dim=-2).to(dtype), logs.to(dtype))


def widen(field: MomentumField) -> MomentumField:
    return MomentumField(field.means.double(), field.logweights.double(), field.loggammas.double())


def level(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-300))


def quadrature(field: MomentumField, src: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """-integral of the velocity from b to a, Gauss-Legendre with 40 nodes in float64."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(40)
    total = torch.zeros(field.means.shape[0], field.means.shape[1], field.means.shape[3], dtype=torch.float64)
    for node, weight in zip(nodes, weights, strict=True):
        total += weight * velocity(field, src, (a + b) / 2 + (a - b) / 2 * node)
    return -total * (a - b) / 2


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: c["name"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_golden_cases(case: dict[str, Any], dtype: torch.dtype) -> None:
    field = MomentumField(*(torch.tensor(case[k], dtype=dtype) for k in ("means", "logweights", "loggammas")))
    if case["shape"]["modes"] == 1:
        field = MomentumField(field.means, field.logweights, torch.zeros(*field.means.shape[:2], 0, 4, dtype=dtype))
    src, a, b = (level(case[k], dtype) for k in ("sigma_src", "sigma_a", "sigma_b"))
    x_b = torch.tensor(case["x_a"], dtype=dtype) + displacement(field, src, a, b)
    # a float32 sigma is itself rounded: the float32 limit allows for that
    limit = 1e-13 if dtype == torch.float64 else 2e-6
    assert relative(x_b, torch.tensor(case["x_b"], dtype=torch.float64)) < limit
    assert relative(velocity(field, src, b), torch.tensor(case["velocity_at_b"], dtype=torch.float64)) < limit


@pytest.mark.parametrize("row", GOLDEN["phi1"], ids=lambda r: str(r["z"]))
def test_golden_phi1(row: dict[str, float]) -> None:
    value = phi1(torch.tensor(row["z"], dtype=torch.float64))
    assert float(value) == pytest.approx(row["value"], rel=4e-16 * 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("spread", [1e-8, 1e-3, 0.3, 1.5])
def test_displacement_is_the_integral_of_the_velocity(dtype: torch.dtype, spread: float) -> None:
    field = random_field(7, modes=16, spread=spread, dtype=dtype)
    src, a, b = (level(v, dtype) for v in (1.0, 0.875, 0.125))
    exact = quadrature(widen(field), src.double(), a.double(), b.double())
    assert relative(displacement(field, src, a, b), exact) <= LIMITS[dtype]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), modes=st.integers(1, 17), tokens=st.integers(1, 5), batch=st.integers(1, 3),
    groups=st.integers(1, 4), spread=st.floats(0.0, 3.0),
    levels=st.lists(st.floats(0.0, 1.0, width=32), min_size=3, max_size=3),
)  # fmt: skip
def test_additivity(
    seed: int, modes: int, tokens: int, batch: int, groups: int, spread: float, levels: list[float]
) -> None:
    field = random_field(seed, batch, tokens, modes, 4 * groups, spread)
    a, b, c = (level(v) for v in sorted(levels, reverse=True))
    src = level(1.0)
    through = displacement(field, src, a, b) + displacement(field, src, b, c)
    torch.testing.assert_close(through, displacement(field, src, a, c), rtol=1e-12, atol=1e-13)


def test_one_mode_is_an_euler_step() -> None:
    field = random_field(3, modes=1)
    step = displacement(field, level(0.9), level(0.9), level(0.3))
    torch.testing.assert_close(step, -field.means[:, :, 0] * 0.6)


def test_gamma_one_is_a_straight_line() -> None:
    field = random_field(4, spread=1e-300)
    mixture = (field.means.unflatten(-1, (-1, 4)) * field.logweights.exp()[..., None, :]).sum(2).flatten(-2)
    torch.testing.assert_close(displacement(field, level(1.0), level(1.0), level(0.25)), -0.75 * mixture)


def test_mean_velocity_is_displacement_over_distance_and_local_at_no_distance() -> None:
    field = random_field(5)
    src, a, b = level(1.0), level(0.8), level(0.3)
    torch.testing.assert_close(mean_velocity(field, src, a, b) * -0.5, displacement(field, src, a, b))
    torch.testing.assert_close(mean_velocity(field, src, a, a), velocity(field, src, a))


def test_levels_may_differ_between_rows() -> None:
    field = random_field(6, batch=2)
    src, a, b = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 0.9], [0.8, 0.7], [0.1, 0.6]))
    both = displacement(field, src, a, b)
    for row in range(2):
        one = MomentumField(field.means[[row]], field.logweights[[row]], field.loggammas[[row]])
        torch.testing.assert_close(displacement(one, src[row], a[row], b[row])[0], both[row])


@pytest.mark.parametrize("centre", [0.0, 1e-12, -1e-5, 0.4999, -0.4999, 0.5, -0.5001, 2.0])
def test_phi1_gradient_is_right_everywhere(centre: float) -> None:
    z = torch.tensor([centre, centre + 1e-3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(phi1, (z,), eps=1e-7, atol=1e-6)
    assert torch.autograd.gradgradcheck(phi1, (z,), eps=1e-6, atol=1e-5)


def test_phi1_has_no_seam() -> None:
    for seam in (0.5, -0.5):
        below, above = (torch.tensor(seam + d, dtype=torch.float64, requires_grad=True) for d in (-1e-9, 1e-9))
        values = [phi1(below), phi1(above)]
        slopes = [torch.autograd.grad(v, z)[0] for v, z in zip(values, (below, above), strict=True)]
        torch.testing.assert_close(values[0], values[1], rtol=3e-9, atol=0.0)
        torch.testing.assert_close(slopes[0], slopes[1], rtol=3e-9, atol=0.0)


def test_displacement_gradients_through_gamma_one() -> None:
    field = random_field(8, batch=1, tokens=1, modes=3, channels=4, spread=0.0)
    inputs = [t.clone().requires_grad_() for t in (field.means, field.logweights, field.loggammas)]

    def move(means: Tensor, logweights: Tensor, loggammas: Tensor) -> Tensor:
        return displacement(MomentumField(means, logweights, loggammas), level(1.0), level(0.9), level(0.2))

    assert torch.autograd.gradcheck(move, inputs)
    slope = torch.autograd.grad(move(*inputs).sum(), inputs[2])[0]
    assert bool((slope != 0).all()), "a straight line must still feel its gamma"


def test_half_precision_fields_are_computed_in_float32() -> None:
    field = random_field(9, dtype=torch.bfloat16)
    step = displacement(field, level(1.0), level(1.0), level(0.5))
    assert step.dtype == torch.float32
    exact = displacement(widen(field), level(1.0), level(1.0), level(0.5))
    assert relative(step, exact) < 1e-6


def test_dropped_modes_have_no_weight_and_the_rest_sums_to_one() -> None:
    field = random_field(10, batch=2, modes=5)
    keep = torch.tensor([[True, False, True, True, False], [False, False, False, False, True]])[:, None, :, None]
    gates = field.drop_modes(keep).logweights.exp()
    torch.testing.assert_close(gates.sum(dim=2), torch.ones_like(gates.sum(dim=2)))
    assert bool((gates[0, :, [1, 4]] == 0).all()) and bool((gates[1, :, :4] == 0).all())
