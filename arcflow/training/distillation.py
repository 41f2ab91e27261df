"""Data-free trajectory distillation: one pure loss per segment (arXiv 2602.09014, section 4).

Nothing but noise and prompts goes in. In every segment the student predicts one field; the field is regressed to the
frozen teacher at a few states of a trajectory that mixes teacher Euler steps with the student's own closed-form
steps. The teacher's share of that trajectory falls during training, so the student ends up learning on the states
that it visits itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from arcflow.field import Prediction
from arcflow.recipe import DistillRecipe, StudentRecipe
from arcflow.schedule import raw_times, shift_sigma
from arcflow.students import Student
from arcflow.training.batches import Batches, Generators, normal, uniform
from arcflow.training.fp8 import Fp8Linears
from arcflow.training.loop import Iteration

Teacher = Callable[[Tensor, Tensor], Tensor]
"""The frozen teacher: (x [B, S, C], sigma [B]) -> velocity [B, S, C]; the prompt is bound in."""


_NFE_DRAW = 1
"""Number of the shared generator that the evaluations of a batch are drawn from."""


@dataclass(frozen=True)
class Segment:
    """A segment in raw time, ``start`` > ``end`` >= 0."""

    start: float
    end: float

    @property
    def length(self) -> float:
        return self.start - self.end


def segments(nfe: int, final_step_ratio: float) -> list[Segment]:
    """The ``nfe`` segments of a sampling run, from noise to image."""
    times = raw_times(nfe, final_step_ratio)
    return [Segment(a, b) for a, b in itertools.pairwise(times)]


def teacher_share(iteration: int, recipe: DistillRecipe) -> float:
    """The teacher's share of the mixed trajectory: 1 at the start, 0 from ``teacher_share_iterations`` on."""
    if recipe.teacher_share_iterations <= 0:
        return 0.0
    return max(0.0, 1.0 - iteration / recipe.teacher_share_iterations)


def interval_lengths(length: float, share: float, states: int, generators: Generators) -> tuple[Tensor, Tensor]:
    """Random lengths of the student's and the teacher's steps, two tensors [B, states] in raw time.

    Before each state the student moves by its closed form, after it the teacher by an Euler step. Both are gaps
    between sorted uniform draws; the teacher's sum to ``share * length``, the student's stay within
    ``(1 - share) * length`` (the segment's rest is the student's as well).
    """
    batch = len(generators)
    student = uniform(generators, states).sort(dim=1).values * ((1.0 - share) * length)
    cuts = uniform(generators, states - 1).sort(dim=1).values
    teacher = torch.diff(cuts, dim=1, prepend=torch.zeros(batch, 1), append=torch.ones(batch, 1)) * (share * length)
    return torch.diff(student, dim=1, prepend=torch.zeros(batch, 1)), teacher


def keep_modes(modes: int, dropout: float, generators: Generators) -> Tensor:
    """Which modes stay, bool [B, 1, K, 1]: each is dropped with that probability, but never all of a row."""
    keep = uniform(generators, modes) >= dropout
    keep[~keep.any(dim=1)] = True
    return keep[:, None, :, None]


def segment_loss(
    field: Prediction,
    teacher: Teacher,
    x_src: Tensor,
    segment: Segment,
    share: float,
    shift: float,
    recipe: DistillRecipe,
    generators: Generators,
) -> tuple[Tensor, Tensor]:
    """The loss of one segment and the state at its end.

    field: the student's prediction at ``x_src`` [B, S, C], with gradient. At each visited state x_a the target is
    the teacher's velocity there, and the prediction is the field's mean velocity over the teacher's interval plus a
    window (its local velocity where that is too short to be told apart). Returns (loss, scalar: loss_scale * 0.5 *
    mean squared error, unweighted; x_dst [B, S, C], detached: where the mixed trajectory leaves the segment).
    """
    batch, device = x_src.shape[0], x_src.device
    kept = field.detach().drop_modes(keep_modes(field.modes, recipe.mode_dropout, generators).to(device))
    step = segment.length / max(1, round(recipe.substeps * segment.length))
    window = min(recipe.window * step, segment.length)
    steps = interval_lengths(segment.length - window, share, recipe.intermediate_states, generators)
    student_steps, teacher_steps = (s.to(device) for s in steps)

    def level(t: Tensor) -> Tensor:
        return shift_sigma(t.clamp(min=0.0), shift)

    t = torch.full((batch,), segment.start, device=device)
    sigma_src = level(t)
    x, sigma = x_src, sigma_src
    policy, moving = kept.motion(x_src, sigma_src), field.motion(x_src, sigma_src)
    errors = []
    for state in range(recipe.intermediate_states):
        t_a = t - student_steps[:, state]
        t_b = t_a - teacher_steps[:, state]
        sigma_a, sigma_b = level(t_a), level(t_b)
        with torch.no_grad():
            x_a = x + policy.displacement(x, sigma, sigma_a)
            target = teacher(x_a, sigma_a).to(x_a.dtype)
            x = x_a - target * (sigma_a - sigma_b)[:, None, None]
        predicted = moving.mean_velocity(x_a, sigma_a, level(t_b - window))
        local = (t_a - t_b + window) < recipe.local_below * step
        if bool(local.any()):
            predicted = torch.where(local[:, None, None], moving.velocity(x_a, sigma_a), predicted)
        errors.append((predicted - target).square().mean())
        t, sigma = t_b, sigma_b
    with torch.no_grad():
        end = level(torch.full_like(t, segment.end))
        x_dst = x + policy.displacement(x, sigma, end)
    return recipe.loss_scale * 0.5 * torch.stack(errors).mean(), x_dst


class SegmentLoss(Protocol):
    """How a prediction is held to the teacher in one segment: :func:`segment_loss`, or another with its arguments."""

    def __call__(
        self,
        field: Any,
        teacher: Teacher,
        x_src: Tensor,
        segment: Segment,
        share: float,
        shift: float,
        recipe: DistillRecipe,
        generators: Generators,
    ) -> tuple[Tensor, Tensor]: ...


MakeStudent = Callable[[nn.Module, StudentRecipe, str], Student]
"""(the teacher's backbone, which is taken over, recipe, name of the architecture) -> a student."""


@dataclass(frozen=True)
class Method:
    """What distinguishes one way to distil from another: the student that is made, and what it is held to."""

    student: MakeStudent = Student
    loss: SegmentLoss = segment_loss


ARCFLOW = Method()
"""A momentum head over LoRA, held to the teacher along the mixed trajectory."""


def drawn_nfe(it: Iteration, recipe: DistillRecipe) -> int:
    """The number of evaluations that an iteration's batch is trained for, the same in all processes."""
    choices = recipe.evaluations
    if len(choices) == 1:
        return choices[0]
    return choices[int(torch.randint(len(choices), (1,), generator=it.shared(_NFE_DRAW)))]


def fp8_begins(recipe: DistillRecipe) -> float:
    """The first iteration, 0-based, whose student computes in FP8; infinity where none does."""
    return math.inf if recipe.fp8_from is None else math.ceil(recipe.fp8_from * recipe.loop.iterations)


def distill_step(
    student: Student, batches: Batches, shift: float, recipe: DistillRecipe, loss_of: SegmentLoss = segment_loss
) -> Any:
    """The training step of :func:`arcflow.training.loop.fit`: all micro-batches and segments, one backward each.

    The teacher is the student's own. Each segment is weighted by its length; a segment's graph is freed before the next
    begins, so memory does not grow with the number of segments. With precision "bf16" the networks run in bfloat16, the
    solver and the loss in float32. Runs where the student is. loss_of: what a segment's prediction is held to.
    """
    channels = student.packed_channels
    fp8 = Fp8Linears(student) if recipe.fp8_from is not None else None

    def train(
        module: nn.Module, it: Iteration, generators: Generators, share: float, weight: float, last: bool
    ) -> float:
        """One micro-batch; its weighted loss."""
        device = next(student.parameters()).device
        parts = segments(drawn_nfe(it, recipe), recipe.final_step_ratio)
        batch = batches(it, generators)
        condition, guidance = batch.condition.to(device), batch.guidance
        x = normal(generators, condition.image_tokens, channels).to(device)
        half = torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=recipe.loop.bf16)

        def frozen(x_t: Tensor, sigma: Tensor) -> Tensor:
            with half:
                return student.teacher_velocity(x_t, sigma, condition, guidance)

        total = 0.0
        for segment in parts:
            sigma_src = shift_sigma(torch.full((len(generators),), segment.start, device=device), shift)
            student.seed_dropout(generators)
            with it.piece(last and segment is parts[-1]):
                with half:
                    field = module(x, sigma_src, condition)
                loss, x = loss_of(field, frozen, x, segment, share, shift, recipe, generators)
                loss = loss * segment.length * weight
                loss.backward()
            total += float(loss.detach())
        return total

    def step(module: nn.Module, it: Iteration) -> dict[str, float]:
        generators, share = it.rows(), teacher_share(it.index, recipe)
        size = recipe.loop.micro_batch or len(generators)
        starts = range(0, len(generators), size)
        total = 0.0
        quantised = fp8 is not None and it.index >= fp8_begins(recipe)
        with fp8.computing() if fp8 is not None and quantised else nullcontext():
            for start in starts:
                rows = generators[start : start + size]
                total += train(module, it, rows, share, len(rows) / len(generators), start == starts[-1])
        figures = {"loss": total, "teacher_share": share}
        return figures if fp8 is None else {**figures, "fp8": float(quantised)}

    return step
