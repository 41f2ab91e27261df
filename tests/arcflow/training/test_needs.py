"""What a training step takes is known before it runs: held to the step itself, run with values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arcflow.inventory import meta_backbone
from arcflow.recipe import Recipe, load_recipe
from arcflow.students import Student, architecture
from arcflow.training import needs
from arcflow.training.batches import Batch
from arcflow.training.counting import Counting
from arcflow.training.distillation import distill_step
from arcflow.training.loop import Iteration
from arcflow.training.needs import StepNeeds, step_needs

SIDE = 16
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
        distill=replace(found.distill, loop=loop, intermediate_states=2, text_tokens=64),
    )


def with_checkpointing(recipe: Recipe, checkpointing: bool) -> Recipe:
    return replace(recipe, distill=replace(recipe.distill, checkpointing=checkpointing))


def said(recipe: Recipe) -> StepNeeds:
    return step_needs(recipe, meta_backbone(recipe), (SIDE, SIDE))


def run(recipe: Recipe) -> tuple[Counting, list[Tensor]]:
    """One segment of a real step: its results, after the gradients of another, and all gradients."""
    torch.manual_seed(0)
    backbone: Any = architecture(recipe.architecture).build_backbone(recipe.backbone).to(torch.bfloat16)
    condition = needs._condition(recipe, backbone.config, (SIDE, SIDE))
    for tensor in vars(condition).values():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            tensor.fill_(0.5)
    student = Student(backbone, recipe.student, recipe.architecture).train()
    if recipe.distill.checkpointing:
        student.backbone.enable_gradient_checkpointing()
    one = replace(recipe.distill, nfe=1)
    step = distill_step(student, lambda *_: Batch(condition), recipe.shift, one)

    iteration = Iteration(0, torch.Generator(), lambda _: torch.enable_grad(), places=range(recipe.distill.loop.batch))
    step(student, iteration)
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    with Counting([*student.parameters(), *student.buffers(), *grads]) as found:
        step(student, iteration)
    return found, grads


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_takes_what_was_said(recipe: Recipe, checkpointing: bool) -> None:
    recipe = with_checkpointing(recipe, checkpointing)
    told = said(recipe)
    found, _ = run(recipe)
    assert told.activations == pytest.approx(found.peak, rel=0.1)
    one = told.operations / recipe.distill.nfe
    if recipe.guidance_kind == "embedded":
        assert one == pytest.approx(found.operations, rel=0.01)
    else:
        assert one > 1.2 * found.operations  # The run had no guidance.


def test_checkpointing_trades_operations_for_memory(recipe: Recipe) -> None:
    kept, again = (said(with_checkpointing(recipe, checkpointing)) for checkpointing in (False, True))
    assert again.activations < 0.7 * kept.activations
    assert 1.05 * kept.operations < again.operations < 1.5 * kept.operations
    assert replace(again, activations=0, operations=0) == replace(kept, activations=0, operations=0)


def test_checkpointing_leaves_gradients_as_they_are(recipe: Recipe) -> None:
    (_, kept), (_, again) = (run(with_checkpointing(recipe, checkpointing)) for checkpointing in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def test_parts_are_those_of_the_networks(recipe: Recipe) -> None:
    told = said(recipe)
    count = sum(p.numel() for p in meta_backbone(recipe).parameters())
    assert told.frozen == 2 * count
    assert told.moments == 2 * told.trained == 2 * told.gradients == 2 * told.average
    assert told.total == told.frozen + 5 * told.trained + told.activations


def test_weights_stored_in_fp8_are_half_but_for_scales_and_what_lies_outside_the_blocks(recipe: Recipe) -> None:
    plain = said(recipe)
    stored = said(replace(recipe, distill=replace(recipe.distill, frozen="fp8")))
    linears = {n: m for n, m in meta_backbone(recipe).named_modules() if "blocks." in n and isinstance(m, nn.Linear)}
    saved = sum(m.weight.numel() - 4 * m.out_features for m in linears.values())
    assert stored.frozen == plain.frozen - saved
    assert replace(stored, frozen=plain.frozen, activations=0) == replace(plain, activations=0)
    assert stored.activations == pytest.approx(plain.activations, rel=0.05)
