"""What a training step takes of a GPU, by part, found without weights, without a GPU and in seconds.

The student runs its step on tensors that have a shape and no values (torch's fake tensors), at the true sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from arcflow.architectures import flux, qwen
from arcflow.counting import Counting
from arcflow.field import mean_velocity
from arcflow.inventory import meta_backbone
from arcflow.recipe import Recipe
from arcflow.students import Student

TEXT_TOKENS = 512
"""Of a prompt that is encoded for training, padding included."""


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


def step_needs(recipe: Recipe, size: tuple[int, int], *, checkpointing: bool = False) -> StepNeeds:
    """What a step of the recipe's batch takes at images of ``size`` (width, height in pixels), AdamW in float32.

    checkpointing: whether each block is run again in the backward instead of keeping what it made. Raises
    RecipeError, BackboneError.
    """
    half = recipe.distill.loop.precision == "bf16"
    backbone = meta_backbone(recipe)
    with torch.device("meta"):
        if half:
            # Not ``to``, which warns of parts that stay in float32 when they are loaded.
            for parameter in backbone.parameters():
                parameter.data = parameter.data.bfloat16()
        student = Student(backbone, recipe.student, recipe.architecture)
    if checkpointing:
        student.backbone.enable_gradient_checkpointing()
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    frozen = {id(p): p for p in (*backbone.parameters(), *student.parameters()) if not p.requires_grad}
    activations, operations = _run(recipe, student.train(), backbone, size, half)
    return StepNeeds(
        frozen=sum(p.numel() * p.itemsize for p in frozen.values()),
        trained=4 * trained,
        gradients=4 * trained,
        moments=8 * trained,
        average=4 * trained if recipe.distill.loop.ema_gamma is not None else 0,
        activations=activations,
        operations=operations,
    )


def _run(recipe: Recipe, student: Student, teacher: nn.Module, size: tuple[int, int], half: bool) -> tuple[int, float]:
    """Most bytes of results alive together in one segment, and operations of all segments."""
    states, batch = recipe.distill.intermediate_states, recipe.distill.loop.batch
    channels = int(teacher.config.in_channels)  # type: ignore[union-attr,arg-type]
    rows, columns = (side // 16 for side in reversed(size))
    condition = _condition(recipe, teacher, batch, rows, columns)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fill(student, teacher)
        x, sigma = torch.empty(batch, rows * columns, channels), torch.empty(batch)
        trained = [p for p in student.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)  # As after the first segment: the peak is with all of them.
        grads = [p.grad for p in trained if p.grad is not None]
        given = [*student.parameters(), *student.buffers(), *teacher.parameters(), *grads, x, sigma]
        cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=half)
        with Counting(given) as counted:
            with cast:
                field = student(x, sigma, condition)
            before = counted.operations
            with torch.no_grad(), cast:
                target = student.architecture.evaluate(teacher, x, sigma, condition)
            # Every visited state takes as much, two of them with classifier-free guidance, and none at once.
            looks = states * (2 if recipe.guidance_kind == "cfg" else 1)
            others = (looks - 1) * (counted.operations - before)
            loss = torch.zeros(())
            for _ in range(states):
                predicted = mean_velocity(field, sigma, sigma, sigma)
                loss = loss + (predicted - target.float()).square().mean()
            del field, predicted
            loss.backward()
    return counted.peak, recipe.distill.nfe * (counted.operations + others)


def _condition(recipe: Recipe, teacher: Any, batch: int, rows: int, columns: int) -> Any:
    tokens = TEXT_TOKENS
    sequence = torch.empty(batch, tokens, teacher.config.joint_attention_dim)
    if recipe.architecture == qwen.NAME:
        return qwen.Condition(sequence, torch.ones(batch, tokens, dtype=torch.bool), rows, columns)
    pooled = torch.empty(batch, teacher.config.pooled_projection_dim)
    return flux.Condition(pooled, sequence, torch.empty(batch), flux.image_ids(rows, columns), torch.zeros(tokens, 3))


def _fill(*roots: nn.Module) -> None:
    """Give modules without memory fake tensors, the same where they share one."""
    made: dict[Tensor, Any] = {}
    for module in (module for root in roots for module in root.modules()):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = made.setdefault(parameter, nn.Parameter(fake, parameter.requires_grad))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(buffer, torch.empty(buffer.shape, dtype=buffer.dtype))
