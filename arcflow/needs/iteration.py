"""What an iteration of training takes of a GPU, by part, found without weights and without a GPU.

The student runs its step on tensors that have a shape and no values (torch's fake tensors), at the true sizes, with a
few blocks that count for all (:mod:`arcflow.needs.standing`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from arcflow.architectures import flux, qwen
from arcflow.field import mean_velocity
from arcflow.needs.counting import Counting
from arcflow.needs.spread import Spread, Weight, moments, size
from arcflow.needs.standing import StandIn, shorten, standing
from arcflow.recipe import LoopConfig, Recipe
from arcflow.sources.stored import as_frozen
from arcflow.students import Student
from arcflow.training.loop import share_of

FIXED_ROOM, SHARE_ROOM = 2 * 10**9, 0.05
"""What is kept free of a GPU: bytes for CUDA's context and libraries, and a share of all parts for memory in pieces too
small to use. Guesses: nothing measured them."""

_AT_ONCE = 2
"""Blocks that are gathered together where weights are shared: the one that runs, and the next."""


@dataclass(frozen=True)
class StepNeeds:
    """Bytes on a GPU at the peak of an iteration, by part, and operations of that GPU in an iteration.

    frozen: the backbone, which teacher and student share; trained: LoRA, head, norm_out, in float32; gradients of
    these; moments: the optimiser's two; average: their EMA; gathered: of other GPUs' shares, what is at hand for a
    while; activations: what the step makes.
    """

    frozen: int
    trained: int
    gradients: int
    moments: int
    average: int
    gathered: int
    activations: int
    operations: float

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        held = self.frozen + self.trained + self.gradients + self.moments + self.average
        return held + self.gathered + self.activations

    def spare(self, memory: float) -> float:
        """Bytes left of a GPU's ``memory``, what is kept free taken off; below 0 where the iteration does not fit."""
        return memory - FIXED_ROOM - self.total * (1 + SHARE_ROOM)


class Outline:
    """A recipe's student without values, whose step is counted once for each number of images at a time."""

    def __init__(self, recipe: Recipe, backbone: nn.Module, grid: tuple[int, int]) -> None:
        """backbone: the teacher's on torch's meta device, which is taken over; grid: rows, columns of image tokens."""
        self.recipe, self.grid = recipe, grid
        with torch.device("meta"):
            student = Student(as_frozen(backbone, recipe.distill.frozen), recipe.student, recipe.architecture)
        if recipe.distill.checkpointing:
            student.backbone.enable_gradient_checkpointing()
        blocks = [list(block.parameters()) for block in student.blocks()]
        inside = {id(parameter) for block in blocks for parameter in block}
        self.blocks = [_weights(block) for block in blocks]
        self.root = _weights([parameter for parameter in student.parameters() if id(parameter) not in inside])
        self._student = student.train()
        self._stand_ins = shorten(student.backbone)
        self._counted: dict[int, tuple[int, float]] = {}

    def needs(self, loop: LoopConfig, spread: Spread | None = None) -> StepNeeds:
        """What an iteration takes of each GPU. loop: the recipe's, or one with another batch, micro_batch or optimizer.

        Shared weights are as :func:`arcflow.training.sharding.shard` leaves them: a share of each parameter's rows,
        gathered for a while, and gradients whole until the last backward of an iteration. Without sharding everything
        is whole on each GPU, and gradients are exchanged where they lie. What AdamW's own step takes (as much as the
        trained weights) comes when activations are gone, and is not counted. Raises RecipeError where the GPUs cannot
        share the batch.
        """
        spread = spread or Spread()
        images = len(share_of(loop.batch, spread.gpus, 0))
        once = min(loop.micro_batch or images, images)
        if once not in self._counted:
            self._counted[once] = _run(self.recipe, self._student, self._stand_ins, self.grid, once)
        activations, operations = self._counted[once]
        backwards = max(self.recipe.distill.evaluations) * math.ceil(images / once)
        weights = [*self.root, *(weight for block in self.blocks for weight in block)]
        trained = [weight for weight in weights if weight.trained]
        own = size(trained, spread.parts)
        return StepNeeds(
            frozen=size([weight for weight in weights if not weight.trained], spread.parts),
            trained=own,
            gradients=own + (self._whole_gradients(trained, backwards) if spread.shard else 0),
            moments=moments(trained, spread.parts, loop.optimizer),
            average=own if loop.ema_gamma is not None else 0,
            gathered=_together(self.root, *self.blocks) if spread.shard else 0,
            activations=activations,
            operations=operations * images / once,
        )

    def _whole_gradients(self, trained: list[Weight], backwards: int) -> int:
        """Bytes of gradients that are not shared yet: all until the last backward, in that one those at hand."""
        if backwards > 1:
            return size(trained)
        return _together(*([w for w in part if w.trained] for part in (self.root, *self.blocks)))


def _weights(parameters: Iterable[nn.Parameter]) -> list[Weight]:
    return [Weight(tuple(p.shape), p.itemsize, p.requires_grad) for p in parameters]


def _together(root: list[Weight], *blocks: list[Weight]) -> int:
    """Bytes of the root and of the largest blocks that are gathered together."""
    return size(root) + sum(sorted(map(size, blocks))[-_AT_ONCE:])


def _run(
    recipe: Recipe, student: Student, stand_ins: list[StandIn], grid: tuple[int, int], images: int
) -> tuple[int, float]:
    """Most bytes of results alive together in one segment, and operations of all segments, of so many images."""
    settings, config = recipe.distill, student.backbone.config
    condition = _condition(recipe, config, grid, images)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fill(student)
        x, sigma = torch.empty(images, math.prod(grid), student.packed_channels), torch.empty(images)
        trained = [p for p in student.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)  # As after the first segment: the peak is with all of them.
        grads = [p.grad for p in trained if p.grad is not None]
        student.seed_dropout([torch.Generator()] * images)
        cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.loop.precision != "fp32")
        with Counting([*student.parameters(), *student.buffers(), *grads, x, sigma]) as counted:
            with standing(counted, stand_ins):
                with cast:
                    field = student(x, sigma, condition)
                before = counted.operations
                with cast:
                    target = student.teacher_velocity(x, sigma, condition)
            # Every visited state takes as much, twice with classifier-free guidance, one after the other.
            looks = settings.intermediate_states * (2 if recipe.guidance_kind == "cfg" else 1)
            others = (looks - 1) * (counted.operations - before)
            loss = torch.zeros(())
            for _ in range(settings.intermediate_states):
                predicted = mean_velocity(field, sigma, sigma, sigma)
                loss = loss + (predicted - target.float()).square().mean()
            del field, predicted
            loss.backward()
    return counted.peak, statistics.fmean(settings.evaluations) * (counted.operations + others)


def _condition(recipe: Recipe, config: Any, grid: tuple[int, int], images: int) -> Any:
    """A condition of prompts as long as they may be."""
    tokens = recipe.distill.text_tokens
    sequence = torch.empty(images, tokens, config.joint_attention_dim)
    if recipe.architecture == qwen.NAME:
        return qwen.Condition(sequence, torch.ones(images, tokens, dtype=torch.bool), *grid)
    pooled = torch.empty(images, config.pooled_projection_dim)
    return flux.Condition(pooled, sequence, torch.empty(images), flux.image_ids(*grid), torch.zeros(tokens, 3))


def _fill(root: nn.Module) -> None:
    """Give a module's parts without values fake tensors, the same where they share one."""
    made: dict[Tensor, Any] = {}
    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = made.setdefault(parameter, nn.Parameter(fake, parameter.requires_grad))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(buffer, torch.empty(buffer.shape, dtype=buffer.dtype))
