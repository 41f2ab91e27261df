"""Noise level and guidance as training had them: golden values, and what diffusers' own modules see in bfloat16."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arcflow.architectures import flux, qwen
from arcflow.policy import policy_of
from arcflow.recipe import Recipe, load_recipe
from tests.arcflow.architectures import test_qwen

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "conditioning.json").read_text(encoding="utf-8"))
SIGMA = torch.tensor([16 / 21, 0.9056604])
FLUX: dict[str, Any] = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 8, "guidance_embeds": True,
    "axes_dims_rope": [4, 6, 6],
}  # fmt: skip


@pytest.mark.parametrize("architecture", [flux, qwen], ids=lambda module: module.NAME)
def test_golden_values(architecture: Any) -> None:
    values, expected = (torch.tensor([entry[key] for entry in GOLDEN]) for key in ("value", architecture.NAME))
    assert torch.equal(architecture.as_trained(values, "bfloat16"), expected)
    assert architecture.as_trained(values, "float32") is values
    assert torch.equal(architecture.as_trained(expected, "bfloat16"), expected), "rounding twice is rounding once"


@contextmanager
def _watched(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """What diffusers makes its sinusoids of, times 1000."""
    seen: list[Tensor] = []
    sinusoids = backbone.time_text_embed.time_proj
    factor = float(sinusoids.scale)  # type: ignore[union-attr]
    handle = sinusoids.register_forward_pre_hook(lambda _, given: seen.append(given[0].float() * factor))  # type: ignore[union-attr]
    yield seen
    handle.remove()


def _small(architecture: Any) -> tuple[nn.Module, Tensor, Any]:
    torch.manual_seed(0)
    if architecture is qwen:
        return qwen.build_backbone(test_qwen.CONFIG).eval(), test_qwen.latents(2), test_qwen.condition(2)
    guidance = torch.full((2,), 3.5)
    text = torch.randn(2, 8), torch.randn(2, 5, 24)
    condition = flux.Condition(*text, guidance, flux.image_ids(2, 2), torch.zeros(5, 3))
    return flux.build_backbone(FLUX).eval(), torch.randn(2, 4, 16), condition


@pytest.mark.parametrize("training", ["autocast", "bfloat16 weights"])
@pytest.mark.parametrize("architecture", [flux, qwen], ids=lambda module: module.NAME)
@torch.no_grad()
def test_a_backbone_in_float32_is_fed_what_it_saw_in_bfloat16(architecture: Any, training: str) -> None:
    backbone, x, condition = _small(architecture)
    with _watched(backbone) as fed:
        architecture.evaluate(backbone, x, SIGMA, condition, "bfloat16")
    with _watched(backbone) as exact:
        architecture.evaluate(backbone, x, SIGMA, condition)
    half = torch.autocast("cpu", torch.bfloat16) if training == "autocast" else nullcontext()
    if training != "autocast":
        backbone, x = backbone.bfloat16(), x.bfloat16()
        parts = {n: v.bfloat16() for n, v in vars(condition).items() if n in ("pooled", "sequence")}
        condition = replace(condition, **parts)
    with _watched(backbone) as seen, half:
        architecture.evaluate(backbone, x, SIGMA, condition)
    assert len(seen) == (2 if architecture is flux else 1)
    for ours, theirs, plain in zip(fed, seen, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-7, atol=0.0)
        assert not torch.allclose(plain, theirs, rtol=1e-4), "rounding makes a difference here"
    if architecture is flux:
        assert [value.tolist() for value in seen] == [[760.0, 908.0], [3504.0, 3504.0]]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_a_recipes_policy_says_what_it_trains_in(precision: Any, dtype: str) -> None:
    recipe: Recipe = load_recipe("tiny")
    loop = replace(recipe.distill.loop, precision=precision)
    assert policy_of(replace(recipe, distill=replace(recipe.distill, loop=loop))).conditioning_dtype == dtype
