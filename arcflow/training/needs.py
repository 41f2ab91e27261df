"""What a training step takes of a GPU, by part, found without weights and without a GPU.

The student runs its step on tensors that have a shape and no values (torch's fake tensors), at the true sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from arcflow.architectures import flux, qwen
from arcflow.field import mean_velocity
from arcflow.recipe import Recipe
from arcflow.sources.stored import as_frozen
from arcflow.students import Student
from arcflow.training.counting import Counting


@dataclass(frozen=True)
class StepNeeds:
    """Bytes on a GPU at the peak of a step, by part, and the operations of a step.

    frozen: the backbone, which teacher and student share; trained: LoRA, head, norm_out, in float32; gradients of
    these; moments: the optimiser's two; average: their EMA; activations: what the step makes.
    """

    frozen: int
    trained: int
    gradients: int
    moments: int
    average: int
    activations: int
    operations: float

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return self.frozen + self.trained + self.gradients + self.moments + self.average + self.activations


def step_needs(recipe: Recipe, backbone: nn.Module, grid: tuple[int, int]) -> StepNeeds:
    """What a step of the recipe's batch takes at images of ``grid`` (rows, columns of tokens), AdamW in float32.

    backbone: the teacher's on torch's meta device, which is taken over.
    """
    settings = recipe.distill
    with torch.device("meta"):
        student = Student(as_frozen(backbone, settings.frozen), recipe.student, recipe.architecture)
    if settings.checkpointing:
        student.backbone.enable_gradient_checkpointing()
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    activations, operations = _run(recipe, student.train(), grid)
    return StepNeeds(
        frozen=sum(p.numel() * p.itemsize for p in student.parameters() if not p.requires_grad),
        trained=4 * trained,
        gradients=4 * trained,
        moments=8 * trained,
        average=4 * trained if settings.loop.ema_gamma is not None else 0,
        activations=activations,
        operations=operations,
    )


def _run(recipe: Recipe, student: Student, grid: tuple[int, int]) -> tuple[int, float]:
    """Most bytes of results alive together in one segment, and operations of all segments."""
    settings, config = recipe.distill, student.backbone.config
    states, batch = settings.intermediate_states, settings.loop.batch
    half = settings.loop.precision == "bf16"
    condition = _condition(recipe, config, grid)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fill(student)
        x, sigma = torch.empty(batch, math.prod(grid), student.packed_channels), torch.empty(batch)
        trained = [p for p in student.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)  # As after the first segment: the peak is with all of them.
        grads = [p.grad for p in trained if p.grad is not None]
        cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=half)
        with Counting([*student.parameters(), *student.buffers(), *grads, x, sigma]) as counted:
            student.seed_dropout([torch.Generator()] * batch)
            with cast:
                field = student(x, sigma, condition)
            before = counted.operations
            with cast:
                target = student.teacher_velocity(x, sigma, condition)
            # Every visited state takes as much, twice with classifier-free guidance, one after the other.
            looks = states * (2 if recipe.guidance_kind == "cfg" else 1)
            others = (looks - 1) * (counted.operations - before)
            loss = torch.zeros(())
            for _ in range(states):
                predicted = mean_velocity(field, sigma, sigma, sigma)
                loss = loss + (predicted - target.float()).square().mean()
            del field, predicted
            loss.backward()
    return counted.peak, settings.nfe * (counted.operations + others)


def _condition(recipe: Recipe, config: Any, grid: tuple[int, int]) -> Any:
    """A condition of prompts as long as they may be."""
    batch, tokens = recipe.distill.loop.batch, recipe.distill.text_tokens
    sequence = torch.empty(batch, tokens, config.joint_attention_dim)
    if recipe.architecture == qwen.NAME:
        return qwen.Condition(sequence, torch.ones(batch, tokens, dtype=torch.bool), *grid)
    pooled = torch.empty(batch, config.pooled_projection_dim)
    return flux.Condition(pooled, sequence, torch.empty(batch), flux.image_ids(*grid), torch.zeros(tokens, 3))


def _fill(root: nn.Module) -> None:
    """Give a module's parts without memory fake tensors, the same where they share one."""
    made: dict[Tensor, Any] = {}
    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = made.setdefault(parameter, nn.Parameter(fake, parameter.requires_grad))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(buffer, torch.empty(buffer.shape, dtype=buffer.dtype))
