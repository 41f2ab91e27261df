"""What a training step takes is known before it runs: held to the step itself, run with values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from arcflow.errors import RecipeError
from arcflow.needs import iteration as needs
from arcflow.needs import standing
from arcflow.needs.counting import Counting
from arcflow.needs.inventory import meta_backbone
from arcflow.needs.iteration import Outline, StepNeeds
from arcflow.needs.spread import Spread, Weight, moments
from arcflow.recipe import LoopConfig, Recipe, load_recipe
from arcflow.students import Student, architecture
from arcflow.training.batches import Batch
from arcflow.training.distillation import distill_step
from arcflow.training.loop import Iteration
from arcflow.training.optimizer import make_optimizer

ROOT = Path(__file__).parents[3]
SIDE = 16
_SMALL: dict[str, dict[str, Any]] = {
    "flux": {
        "num_layers": 2, "num_single_layers": 6, "num_attention_heads": 4, "attention_head_dim": 32,
        "axes_dims_rope": [8, 12, 12], "joint_attention_dim": 64, "pooled_projection_dim": 32,
    },
    "qwen": {
        "num_layers": 6, "num_attention_heads": 4, "attention_head_dim": 32, "axes_dims_rope": [8, 12, 12],
        "joint_attention_dim": 64,
    },
}  # fmt: skip


_OUTLINES: dict[str, Outline] = {}


@pytest.fixture(params=["flux", "qwen"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    found = load_recipe(request.param)
    loop = replace(found.distill.loop, batch=2, micro_batch=None)
    return replace(
        found,
        backbone={**(found.backbone or {}), **_SMALL[request.param]},
        student=replace(found.student, rank=8, modes=2),
        distill=replace(found.distill, loop=loop, intermediate_states=2, text_tokens=64),
    )


def with_checkpointing(recipe: Recipe, checkpointing: bool) -> Recipe:
    return replace(recipe, distill=replace(recipe.distill, checkpointing=checkpointing))


def said(recipe: Recipe, spread: Spread | None = None) -> StepNeeds:
    alike = repr(with_loop(recipe, batch=1, micro_batch=None))
    if alike not in _OUTLINES:
        _OUTLINES[alike] = Outline(recipe, meta_backbone(recipe), (SIDE, SIDE))
    return _OUTLINES[alike].needs(recipe.distill.loop, spread)


def with_loop(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, distill=replace(recipe.distill, loop=replace(recipe.distill.loop, **changes)))


def run(recipe: Recipe) -> tuple[Counting, list[Tensor]]:
    """One segment of a real step: its results, after the gradients of another, and all gradients."""
    torch.manual_seed(0)
    backbone: Any = architecture(recipe.architecture).build_backbone(recipe.backbone).to(torch.bfloat16)
    condition = needs._condition(recipe, backbone.config, (SIDE, SIDE), recipe.distill.loop.batch)
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


@pytest.mark.parametrize(("checkpointing", "frozen"), [(False, "bf16"), (True, "fp8")])
def test_a_few_blocks_stand_for_all_to_the_byte(
    recipe: Recipe, checkpointing: bool, frozen: Literal["bf16", "fp8"], monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = {"flux": {"num_layers": 6, "num_single_layers": 7}, "qwen": {"num_layers": 7}}[recipe.architecture]
    recipe = with_checkpointing(replace(recipe, backbone={**(recipe.backbone or {}), **deep}), checkpointing)
    recipe = replace(recipe, distill=replace(recipe.distill, frozen=frozen))
    few = said(recipe)
    monkeypatch.setattr(standing, "_KEPT", 8)
    assert Outline(recipe, meta_backbone(recipe), (SIDE, SIDE)).needs(recipe.distill.loop) == few


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


@pytest.mark.parametrize("recipe", ["flux"], indirect=True)
def test_micro_batches_trade_nothing_but_memory(recipe: Recipe) -> None:
    recipe = with_loop(recipe, batch=4)
    whole, halves = said(recipe), said(with_loop(recipe, micro_batch=2))
    assert halves.activations == pytest.approx(whole.activations / 2, rel=0.2)
    assert replace(halves, activations=whole.activations) == whole
    assert said(with_loop(recipe, micro_batch=9)) == whole


@pytest.mark.parametrize("recipe", ["flux"], indirect=True)
def test_gpus_share_the_batch_and_where_told_to_the_weights(recipe: Recipe) -> None:
    recipe = with_loop(recipe, batch=4)
    alone, beside, shared = (said(recipe, spread) for spread in (Spread(), Spread(2), Spread(2, shard=True)))
    half = said(with_loop(recipe, batch=2))
    assert beside == half and half.operations == alone.operations / 2
    assert replace(shared, activations=0) != replace(half, activations=0)
    assert (shared.activations, shared.operations) == (half.activations, half.operations)
    for part in ("frozen", "trained", "moments", "average"):
        assert getattr(shared, part) == pytest.approx(getattr(half, part) / 2, rel=0.02)
    assert shared.gradients == half.gradients + shared.trained
    once = replace(recipe, distill=replace(recipe.distill, nfe=1))
    assert shared.trained < said(once, Spread(2, shard=True)).gradients < shared.gradients
    with pytest.raises(RecipeError, match="it must be a multiple of 3"):
        said(recipe, Spread(3))


def test_a_gpu_is_told_what_it_lacks() -> None:
    needs = StepNeeds(10**9, 10**9, 0, 0, 0, 0, 0, 0.0)
    assert needs.spare(5e9) == pytest.approx(5e9 - 2e9 - 2.1e9)
    assert needs.spare(4e9) == pytest.approx(-1e8)


SHAPES = ((64, 128), (15, 256), (4099,), (100, 256))


def test_moments_in_8_bits_leave_small_and_odd_weights_in_float32() -> None:
    large, small, odd, _ = (Weight(shape, 4, trained=True) for shape in SHAPES)
    assert moments([large, small, odd], 1, "adamw") == 8 * (64 * 128 + 15 * 256 + 4099)
    assert moments([large], 1, "adamw8bit") == 2 * (64 * 128 + 4 * 32 + 1024)
    assert moments([small, odd], 1, "adamw8bit") == 8 * (15 * 256 + 4099)
    assert moments([large], 4, "adamw8bit") == 8 * 16 * 128  # A share of it has too few numbers.


def test_moments_in_8_bits_are_torchaos() -> None:
    pytest.importorskip("torchao")
    made: Any = make_optimizer(
        [{"params": [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]}],
        LoopConfig(1, 1, 0.1, optimizer="adamw8bit"),
    )
    found = [made._new_buffer(p, signed) for p in made.param_groups[0]["params"] for signed in (True, False)]
    parts = [[getattr(each, name) for name in getattr(each, "tensor_attrs", ())] or [each] for each in found]
    told = moments([Weight(shape, 4, trained=True) for shape in SHAPES], 1, "adamw8bit")
    assert told == sum(tensor.nbytes for part in parts for tensor in part)


def test_shares_are_those_of_two_processes(tmp_path: Path) -> None:
    """torch's own sharding, over gloo: odd numbers of rows, gradients that wait, what is gathered."""
    (tmp_path / "small.toml").write_text(
        "extends = 'flux'\n[backbone]\nnum_layers = 3\nnum_single_layers = 2\nnum_attention_heads = 2\n"
        "attention_head_dim = 32\naxes_dims_rope = [8, 12, 12]\njoint_attention_dim = 64\npooled_projection_dim = 33\n"
        "[student]\nrank = 3\nmodes = 2\n"
        "[distill]\nfrozen = 'fp8'\ntext_tokens = 5\nsizes = ['64x64']\nloop = { batch = 2 }\n"
    )
    recipe = load_recipe(str(tmp_path / "small.toml"))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    made = subprocess.run(
        [sys.executable, *command, "-m", "tests.arcflow.needs.shards", str(tmp_path / "small.toml"), str(tmp_path)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    told = Outline(recipe, meta_backbone(recipe), (4, 4)).needs(recipe.distill.loop, Spread(2, shard=True))
    assert {part: getattr(told, part) for part in ("frozen", "trained", "moments", "gathered")} == {
        part: first[part] for part in ("frozen", "trained", "moments", "gathered")
    }
    assert told.gradients == first["waiting"] + first["gradients"]
    assert all(second[part] <= first[part] for part in first), "the first process has the most"
    assert second["trained"] < first["trained"], "the rows were to be odd"
