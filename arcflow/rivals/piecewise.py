"""Parallel Decoding Distillation, PDD (arXiv 2607.26004): a velocity of its own for each small interval of the time.

The time is cut into N intervals. One evaluation gives a velocity for every one of them, by N copies of the teacher's
last linear on the same features; the state moves in straight lines, one an interval. With n evaluations each uses the
N/n intervals of its own segment. In training an interval k of the segment is drawn, the student's own velocities lead
to its start, and velocity k is regressed to one Runge-Kutta step of the teacher from there: Euler's, or in the
midpoint variant the midpoint's, which takes two of the teacher's evaluations and, as in the paper, half as many
intervals.

Written from the paper's abstract and from descriptions of its algorithms by others; its text was not to be had.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arcflow.errors import RecipeError
from arcflow.field import Level
from arcflow.recipe import DistillRecipe
from arcflow.schedule import shift_sigma
from arcflow.training.batches import Generators, uniform
from arcflow.training.distillation import Segment, Teacher


@dataclass(frozen=True)
class PiecewiseField:
    """Velocities [B, S, N, C], float32, constant between neighbouring ``levels`` [N + 1] (1 down to 0).

    A prediction and, as where a segment starts does not matter to it, its own motion.
    """

    velocities: Tensor
    levels: Tensor

    @property
    def modes(self) -> int:
        """1: there is nothing to drop, each interval has one velocity."""
        return 1

    def detach(self) -> PiecewiseField:
        return PiecewiseField(self.velocities.detach(), self.levels)

    def drop_modes(self, keep: Tensor) -> PiecewiseField:
        return self

    def motion(self, x_src: Tensor, sigma_src: Level) -> PiecewiseField:
        return self

    def piece(self, number: Tensor) -> Tensor:
        """The velocity [B, S, C] of each row's interval ``number`` [B]."""
        return self.velocities[torch.arange(len(number), device=number.device), :, number]

    def velocity(self, x: Tensor, sigma: Level) -> Tensor:
        """That of the interval below ``sigma``."""
        below = (self.levels[1:] >= self._column(sigma)).sum(dim=1).clamp(max=self.velocities.shape[2] - 1)
        return self.piece(below.expand(len(self.velocities)))

    def displacement(self, x: Tensor, sigma_a: Level, sigma_b: Level) -> Tensor:
        """-sum_k v_k |[sigma_b, sigma_a] and [levels_{k+1}, levels_k]|, exact."""
        above = torch.minimum(self._column(sigma_a), self.levels[:-1])
        below = torch.maximum(self._column(sigma_b), self.levels[1:])
        lengths = (above - below).clamp(min=0.0)
        return -torch.einsum("bskc,bk->bsc", self.velocities, lengths.expand(len(self.velocities), -1))

    def mean_velocity(self, x: Tensor, sigma_a: Level, sigma_b: Level) -> Tensor:
        span = (self._column(sigma_a) - self._column(sigma_b))[:, :, None]
        mean = -self.displacement(x, sigma_a, sigma_b) / torch.where(span > 0, span, torch.ones_like(span))
        return torch.where(span > 0, mean, self.velocity(x, sigma_a))

    def _column(self, sigma: Level) -> Tensor:
        return torch.as_tensor(sigma, dtype=self.levels.dtype, device=self.levels.device).reshape(-1, 1)


class PiecewiseHead(nn.Module):
    """The teacher's last linear, copied for each interval; intervals are equal in raw time."""

    levels: Tensor

    def __init__(self, proj_out: nn.Linear, pieces: int, shift: float) -> None:
        super().__init__()
        self.pieces = pieces
        self.velocities = nn.Linear(proj_out.in_features, pieces * proj_out.out_features)
        with torch.no_grad():
            self.velocities.weight.copy_(proj_out.weight.repeat(pieces, 1))
            self.velocities.bias.copy_(proj_out.bias.repeat(pieces))
        self.register_buffer("levels", shift_sigma(torch.linspace(1.0, 0.0, pieces + 1), shift), persistent=False)

    def forward(self, features: Tensor) -> PiecewiseField:
        """Features [B, S, D] to velocities, in float32 or better."""
        found = self.velocities(features).unflatten(-1, (self.pieces, -1))
        return PiecewiseField(found.to(torch.promote_types(found.dtype, torch.float32)), self.levels)


def block_loss(
    field: PiecewiseField,
    teacher: Teacher,
    x_src: Tensor,
    segment: Segment,
    share: float,
    shift: float,
    recipe: DistillRecipe,
    generators: Generators,
    *,
    midpoint: bool,
) -> tuple[Tensor, Tensor]:
    """PDD's loss in one segment, and the state at its end: arguments and results of ``segment_loss``.

    The teacher is evaluated ``intermediate_states`` times, as by the method's own loss: so many intervals are drawn, of
    the midpoint variant half as many. share is not used: states are the student's own from the beginning. Raises
    RecipeError where the segment does not begin and end with an interval.
    """
    pieces = field.velocities.shape[2]
    first, last = (_aligned(time, pieces) for time in (segment.start, segment.end))
    known, levels = field.detach(), field.levels
    states = max(1, recipe.intermediate_states // (2 if midpoint else 1))
    draws = uniform(generators, states).to(x_src.device)
    errors = []
    for state in range(states):
        number = (first + (draws[:, state] * (last - first)).long()).clamp(max=last - 1)
        sigma_a, sigma_b = levels[number], levels[number + 1]
        with torch.no_grad():
            x_a = x_src + known.displacement(x_src, levels[first], sigma_a)
            target = teacher(x_a, sigma_a).to(x_a.dtype)
            if midpoint:
                half = (sigma_a - sigma_b) / 2
                target = teacher(x_a - target * half[:, None, None], sigma_a - half).to(x_a.dtype)
        errors.append((field.piece(number) - target).square().mean())
    x_dst = x_src + known.displacement(x_src, levels[first], levels[last])
    return recipe.loss_scale * 0.5 * torch.stack(errors).mean(), x_dst


def _aligned(time: float, pieces: int) -> int:
    """The number of the interval that begins at a raw time."""
    number = (1.0 - time) * pieces
    if abs(number - round(number)) > 1e-6 * pieces:
        raise RecipeError(
            f"a segment begins or ends at raw time {time:g}, where none of {pieces} equal intervals does: set pieces "
            "of [study] to a multiple of all numbers of evaluations, and final_step_ratio to 1"
        )
    return round(number)
