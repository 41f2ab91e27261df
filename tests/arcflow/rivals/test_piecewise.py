"""PDD's velocities: exact lengths of intervals, the interval that is meant, gradients, and what the loss asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from arcflow.errors import RecipeError
from arcflow.recipe import Recipe
from arcflow.rivals.piecewise import PiecewiseField, PiecewiseHead, block_loss
from arcflow.schedule import shift_sigma
from arcflow.training.distillation import Segment

LEVELS = torch.tensor([1.0, 0.8, 0.5, 0.0], dtype=torch.float64)


def field(batch: int = 2) -> PiecewiseField:
    g = torch.Generator().manual_seed(3)
    return PiecewiseField(torch.randn(batch, 2, 3, 4, generator=g, dtype=torch.float64), LEVELS)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(count)]


def test_displacement_is_the_integral_of_the_velocity() -> None:
    one, x = field(1), torch.zeros(1, 2, 4, dtype=torch.float64)
    points = torch.linspace(0.93, 0.21, 20001, dtype=torch.float64)
    middles = (points[1:] + points[:-1]) / 2
    total = sum(one.velocity(x, float(level)) for level in middles[::50]) * float(points[50] - points[0])
    torch.testing.assert_close(one.displacement(x, 0.93, 0.21), total, rtol=0.02, atol=0.01)
    exact = -(0.13 * one.velocities[:, :, 0] + 0.3 * one.velocities[:, :, 1] + 0.29 * one.velocities[:, :, 2])
    torch.testing.assert_close(one.displacement(x, 0.93, 0.21), exact)


def test_rows_have_levels_of_their_own() -> None:
    both, x = field(2), torch.zeros(2, 2, 4, dtype=torch.float64)
    a, b = torch.tensor([1.0, 0.7], dtype=torch.float64), torch.tensor([0.6, 0.1], dtype=torch.float64)
    moved = both.displacement(x, a, b)
    for row in range(2):
        one = PiecewiseField(both.velocities[row : row + 1], LEVELS)
        torch.testing.assert_close(one.displacement(x[:1], float(a[row]), float(b[row]))[0], moved[row])


def test_the_velocity_is_that_of_the_interval_below() -> None:
    one, x = field(1), torch.zeros(1, 2, 4)
    for level, number in ((1.0, 0), (0.81, 0), (0.8, 1), (0.51, 1), (0.5, 2), (0.0, 2)):
        torch.testing.assert_close(one.velocity(x, level), one.velocities[:, :, number])
    torch.testing.assert_close(one.mean_velocity(x, 0.6, 0.6), one.velocities[:, :, 1])
    torch.testing.assert_close(one.mean_velocity(x, 0.8, 0.5), one.velocities[:, :, 1])


def test_a_head_starts_as_the_teacher() -> None:
    torch.manual_seed(0)
    proj_out, features = nn.Linear(6, 8), torch.randn(2, 3, 6)
    head = PiecewiseHead(proj_out, pieces=4, shift=1.7)
    predicted = head(features)
    for number in range(4):
        torch.testing.assert_close(predicted.velocities[:, :, number], proj_out(features))
    torch.testing.assert_close(head.levels, torch.tensor([shift_sigma(t / 4, 1.7) for t in (4, 3, 2, 1, 0)]))
    assert list(dict(head.named_parameters())) == ["velocities.weight", "velocities.bias"]


class Grid:
    """A teacher whose velocity is a line in sigma, u = v + c * sigma: Euler errs on it, the midpoint does not."""

    def __init__(self, batch: int) -> None:
        self.v, self.calls = torch.randn(batch, 2, 4, generator=torch.Generator().manual_seed(1)), 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return self.v + 3.0 * sigma[:, None, None]


@pytest.mark.parametrize("midpoint", [False, True])
def test_the_loss_is_zero_for_the_teacher_s_own_steps_alone(recipe: Recipe, midpoint: bool) -> None:
    levels = shift_sigma(torch.linspace(1.0, 0.0, 9), 1.7)
    teacher = Grid(3)
    at = (levels[1:] + levels[:-1]) / 2 if midpoint else levels[:-1]
    velocities = teacher.v[:, :, None] + 3.0 * at[None, None, :, None]
    x = torch.randn(3, 2, 4)
    settings = (Segment(0.5, 0.0), 0.7, 1.7, recipe.distill, generators(3))
    exact = PiecewiseField(velocities, levels)
    loss, x_dst = block_loss(exact, teacher, x, *settings, midpoint=midpoint)
    assert float(loss) < 1e-10
    assert teacher.calls == recipe.distill.intermediate_states
    torch.testing.assert_close(x_dst, x + exact.displacement(x, levels[4], levels[8]))
    wrong, _ = block_loss(PiecewiseField(velocities + 0.1, levels), teacher, x, *settings, midpoint=midpoint)
    assert float(wrong) == pytest.approx(recipe.distill.loss_scale * 0.5 * 0.01, rel=1e-3)


def test_only_intervals_of_the_segment_learn(recipe: Recipe) -> None:
    velocities = torch.zeros(4, 2, 8, 4, requires_grad=True)
    levels = shift_sigma(torch.linspace(1.0, 0.0, 9), 1.7)
    settings = replace(recipe.distill, intermediate_states=64)
    loss, x_dst = block_loss(
        PiecewiseField(velocities, levels), Grid(4), torch.zeros(4, 2, 4), Segment(1.0, 0.5), 0.0, 1.7, settings,
        generators(4), midpoint=False,
    )  # fmt: skip
    assert not x_dst.requires_grad
    loss.backward()
    assert velocities.grad is not None
    learnt = velocities.grad.abs().sum(dim=(0, 1, 3)) > 0
    assert learnt.tolist() == [True] * 4 + [False] * 4


def test_segments_that_no_interval_ends_are_rejected(recipe: Recipe) -> None:
    made = PiecewiseField(torch.zeros(1, 1, 4, 4), torch.linspace(1, 0, 5))
    with pytest.raises(RecipeError, match="none of 4 equal intervals"):
        block_loss(
            made, Grid(1), torch.zeros(1, 1, 4), Segment(1.0, 2 / 3), 0.0, 1.7, recipe.distill, generators(1),
            midpoint=False,
        )  # fmt: skip
