"""Sampling in torch: the two-step student, and the teacher's Euler steps and guidance it is measured against."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arcflow.architectures.conditioning import ConditioningDtype
from arcflow.field import Prediction
from arcflow.schedule import sigmas


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (arXiv 2207.12598), for teachers without a guidance input.

    scale: 1 is no guidance; empty: the architecture's condition of one empty prompt, of any number of text tokens.
    """

    scale: float
    empty: Any


@torch.no_grad()
def teacher_velocity(
    architecture: Any,
    teacher: nn.Module,
    x: Tensor,
    sigma: Tensor,
    condition: Any,
    guidance: ClassifierFree | None = None,
    trained: ConditioningDtype = "float32",
) -> Tensor:
    """The teacher's velocity [B, S, C] at ``x`` [B, S, C] and noise levels ``sigma`` [B].

    Without ``guidance`` one evaluation: what guidance there is, is part of the condition. With it two, and
    ``u_empty + scale * (u - u_empty)``; the length of a token's velocity is left as it comes out (diffusers' pipeline
    of Qwen-Image scales it back, the method does not). trained: see ``evaluate`` of the architecture.
    """
    u: Tensor = architecture.evaluate(teacher, x, sigma, condition, trained)
    if guidance is None:
        return u
    empty = guidance.empty[torch.zeros(x.shape[0], dtype=torch.long)].to(x.device)
    u_empty: Tensor = architecture.evaluate(teacher, x, sigma, empty, trained)
    return u_empty + guidance.scale * (u - u_empty)


Evaluate = Callable[[Tensor, Tensor], Prediction]
"""A student: (x [B, S, C], sigma [B]) -> what it predicts of the segment, a field; the prompt is bound in."""


@torch.no_grad()
def integrate(
    evaluate: Evaluate,
    noise: Tensor,
    levels: Sequence[float],
    visit: Callable[[Any, Tensor, float, float], object] = lambda *_: None,
) -> Tensor:
    """From ``noise`` [B, S, C] at the first noise level to the last: one evaluation a segment, closed form between.

    levels: falling; visit: told of each segment once its end is known: field, x at its start, its two levels.
    """
    x = noise
    for a, b in itertools.pairwise(levels):
        field = evaluate(x, torch.full((x.shape[0],), a, device=x.device))
        there = x + field.motion(x, a).displacement(x, a, b)
        visit(field, x, a, b)
        x = there
    return x


def sample_student(
    architecture: Any,
    student: nn.Module,
    noise: Tensor,
    condition: Any,
    nfe: int,
    shift: float,
    final_step_ratio: float = 1.0,
    levels: Sequence[float] = (),
    trained: ConditioningDtype = "float32",
) -> tuple[Tensor, dict[float, Tensor]]:
    """Integrate a student from ``noise`` [B, S, C]: one evaluation a segment, closed form between.

    student: a backbone with a momentum head, or another whose result is a :class:`arcflow.field.Prediction`. levels:
    noise levels at which the state is wanted too. trained: what the student was trained in (its policy's
    ``conditioning_dtype``); the solver has the exact noise levels always.
    Returns (x at sigma 0, {level: x there}).
    """
    seen: dict[float, Tensor] = {}

    def look(field: Prediction, x: Tensor, a: float, b: float) -> None:
        for level in levels:
            if b <= level <= a:
                seen[level] = x + field.motion(x, a).displacement(x, a, level)

    x = integrate(
        lambda x, sigma: architecture.evaluate(student, x, sigma, condition, trained),
        noise,
        sigmas(nfe, shift, final_step_ratio),
        look,
    )
    return x, seen


Velocity = Callable[[Tensor, Tensor], Tensor]
"""A teacher: (x [B, S, C], sigma [B]) -> velocity [B, S, C]; the prompt is bound in."""


@torch.no_grad()
def euler(
    velocity: Velocity,
    noise: Tensor,
    levels: Sequence[float],
    visit: Callable[[Tensor, float], object] = lambda *_: None,
) -> Tensor:
    """From ``noise`` [B, S, C] at the first noise level to the last by Euler steps, in the noise's dtype.

    levels: falling; visit: told of each state and its level, the noise's but not.
    """
    x = noise
    for a, b in itertools.pairwise(levels):
        x = x - velocity(x, torch.full((x.shape[0],), a, device=x.device)).to(x.dtype) * (a - b)
        visit(x, b)
    return x


def sample_teacher(
    architecture: Any,
    teacher: nn.Module,
    noise: Tensor,
    condition: Any,
    steps: int,
    shift: float,
    guidance: ClassifierFree | None = None,
    trained: ConditioningDtype = "float32",
) -> tuple[Tensor, dict[float, Tensor]]:
    """Integrate a teacher by ``steps`` Euler steps on the shifted grid. Returns (x at sigma 0, {level: x there}).

    trained: what the teacher ran in when its student was distilled; the steps have the exact noise levels always.
    """
    grid = sigmas(steps, shift)
    seen = {grid[0]: noise}

    def keep(x: Tensor, level: float) -> None:
        seen[level] = x

    x = euler(
        lambda x, sigma: teacher_velocity(architecture, teacher, x, sigma, condition, guidance, trained),
        noise,
        grid,
        keep,
    )
    return x, seen
