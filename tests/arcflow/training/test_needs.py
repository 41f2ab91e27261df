"""What a training step takes is known before it runs: held to the step itself, run with values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arcflow.counting import Counting
from arcflow.recipe import Recipe, load_recipe
from arcflow.students import Student, architecture
from arcflow.training import needs
from arcflow.training.distillation import distill_step
from arcflow.training.loop import Iteration
from arcflow.training.needs import step_needs

SIDE = 256
_SMALL: dict[str, dict[str, Any]] = {
    "flux": {
        "num_layers": 3, "num_single_layers": 3, "num_attention_heads": 4, "attention_head_dim": 32,
        "axes_dims_rope": [8, 12, 12], "joint_attention_dim": 64, "pooled_projection_dim": 32,
    },
    "qwen": {
        "num_layers": 5, "num_attention_heads": 4, "attention_head_dim": 32, "axes_dims_rope": [8, 12, 12],
        "joint_attention_dim": 64,
    },
}  # fmt: skip


@pytest.fixture(params=["flux", "qwen"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    found = load_recipe(request.param)
    loop = replace(found.distill.loop, batch=2)
    return replace(
        found,
        backbone={**(found.backbone or {}), **_SMALL[request.param]},
        student=replace(found.student, rank=8, modes=2),
        distill=replace(found.distill, loop=loop, intermediate_states=2),
    )


def counted(recipe: Recipe, checkpointing: bool) -> Counting:
    """One segment of a real step: its results, after the gradients of another."""
    arch = architecture(recipe.architecture)
    torch.manual_seed(0)
    teacher = arch.build_backbone(recipe.backbone).to(torch.bfloat16).requires_grad_(False)
    student = Student(teacher, recipe.student, recipe.architecture).train()
    if checkpointing:
        student.backbone.enable_gradient_checkpointing()
    one = replace(recipe.distill, nfe=1)
    channels = int(teacher.config.in_channels)
    condition = needs._condition(recipe, teacher, recipe.distill.loop.batch, SIDE // 16, SIDE // 16)
    step = distill_step(arch, teacher, lambda *_: condition, ((SIDE // 16) ** 2, channels), recipe.shift, one)

    def backward(loss: Tensor) -> None:
        loss.backward()

    generator = torch.Generator().manual_seed(0)
    iteration = Iteration(0, generator, backward, lambda _: torch.enable_grad())
    step(student, iteration)
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    held: list[Tensor] = [*student.parameters(), *student.buffers(), *teacher.parameters(), *grads]
    with Counting(held) as found:
        step(student, iteration)
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_takes_what_was_said(recipe: Recipe, checkpointing: bool) -> None:
    said = step_needs(recipe, (SIDE, SIDE), checkpointing=checkpointing)
    found = counted(recipe, checkpointing)
    assert said.activations == pytest.approx(found.peak, rel=0.1)
    one_with_two_teachers = said.operations / recipe.distill.nfe
    if recipe.guidance_kind == "embedded":
        assert one_with_two_teachers == pytest.approx(found.operations, rel=0.01)
    else:
        assert one_with_two_teachers > 1.2 * found.operations


def test_checkpointing_trades_operations_for_memory(recipe: Recipe) -> None:
    kept, again = (step_needs(recipe, (SIDE, SIDE), checkpointing=c) for c in (False, True))
    assert again.activations < 0.7 * kept.activations
    assert 1.05 * kept.operations < again.operations < 1.5 * kept.operations
    assert replace(again, activations=0, operations=0) == replace(kept, activations=0, operations=0)


def test_parts_are_those_of_the_networks(recipe: Recipe) -> None:
    said = step_needs(recipe, (SIDE, SIDE))
    backbone: nn.Module = architecture(recipe.architecture).build_backbone(recipe.backbone)
    count = sum(p.numel() for p in backbone.parameters())
    assert 2 * count <= said.frozen < 2.1 * count
    assert said.moments == 2 * said.trained == 2 * said.gradients == 2 * said.average
    assert said.total == said.frozen + 5 * said.trained + said.activations
