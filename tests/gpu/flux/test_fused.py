"""The fused network, FP8 with static scales and FP8 attention against the plain network under the same weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arcflow.field import MomentumField
from gpu.flux.attention import Fp8Attend, need_fp8
from gpu.flux.backbone import Backbone, BackboneSize, inputs
from gpu.flux.fp8 import GREATEST, Fp8Projection, measure_bounds, scale_of, to_e4m3, to_fp8
from gpu.flux.fused import Attend, FusedBackbone, Projection
from gpu.records import SkipPartError

SIZE = BackboneSize(
    num_layers=2,
    num_single_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=16,
    joint_attention_dim=32,
    pooled_projection_dim=16,
    axes_dims_rope=(4, 6, 6),
    modes=4,
)


def _given(dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(1)
    given: dict[str, Any] = dict(inputs(SIZE, 4, 6, "cpu", dtype))
    return given | {"hidden_states": torch.randn(1, 16, 16, dtype=dtype), "timestep": torch.tensor([0.76], dtype=dtype)}


def _plain(dtype: torch.dtype) -> Backbone:
    torch.manual_seed(0)
    model = Backbone(SIZE).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.2)
    return model.to(dtype)


def _error(ours: MomentumField, theirs: MomentumField) -> float:
    pairs = ((getattr(ours, name), getattr(theirs, name)) for name in ("means", "logweights", "loggammas"))
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_fused_is_the_plain_network(dtype: torch.dtype, limit: float) -> None:
    plain, given = _plain(dtype), _given(dtype)
    wanted = plain(**given)[0]
    fused = FusedBackbone(copy.deepcopy(plain))
    assert _error(fused(**given)[0], wanted) < limit
    assert not any(isinstance(part, nn.Linear) for block in fused.transformer_blocks for part in _products(block))


def _products(block: nn.Module) -> list[nn.Module]:
    """Everything in a block but its modulation, whose input is one row."""
    return [part for name, part in block.named_modules() if not name.startswith("norm")]


@torch.no_grad()
def test_the_backbones_blocks_go_as_their_twins_come() -> None:
    plain = _plain(torch.bfloat16)
    before = sum(p.numel() for p in plain.parameters())
    fused = FusedBackbone(plain)
    assert len(plain.transformer_blocks) == len(plain.single_transformer_blocks) == 0
    assert sum(t.numel() for t in (*fused.parameters(), *fused.buffers())) == before


@torch.no_grad()
@pytest.mark.parametrize("attention", [False, True])
def test_static_fp8_is_near(attention: bool) -> None:
    plain, given = _plain(torch.bfloat16), _given(torch.bfloat16)
    wanted = plain(**given)[0]
    fused = FusedBackbone(plain)
    bounds = measure_bounds(fused, lambda: fused(**given))
    # Six products of a double block for each side's three inputs and one after attention; two of a single block.
    assert to_fp8(fused, bounds, attention) == 2 * 8 + 2 * 2
    assert not any(isinstance(module, Projection) for module in fused.modules())
    assert any(isinstance(module, Fp8Attend) for module in fused.modules()) is attention
    assert any(isinstance(module, Attend) for module in fused.modules()) is not attention
    assert 1e-3 < _error(fused(**given)[0], wanted) < 0.15


@torch.no_grad()
def test_bounds_are_the_greatest_that_was_seen() -> None:
    fused = FusedBackbone(_plain(torch.float32))
    seen: dict[str, float] = {}

    def see(module: nn.Module, given: tuple[Tensor, ...], name: str) -> None:
        seen[name] = max(seen.get(name, 0.0), float(given[0].abs().max()))

    for name, module in fused.named_modules():
        if isinstance(module, Projection):
            module.register_forward_pre_hook(lambda module, given, name=name: see(module, given, name))
    first, second = _given(torch.float32), _given(torch.float32)
    second["hidden_states"] = 3 * second["hidden_states"]

    def both() -> None:
        fused(**first)
        fused(**second)

    bounds = measure_bounds(fused, both)
    assert {name: bound[0] for name, bound in bounds.items() if len(bound) == 1} == pytest.approx(seen)
    assert all(len(bound) == 4 for name, bound in bounds.items() if name.endswith("attend"))
    assert not fused.transformer_blocks[0].attend._forward_hooks


@torch.no_grad()
def test_a_projection_in_fp8_keeps_channels_and_saturates() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    linear.weight.mul_(torch.logspace(-3, 3, 48)[:, None])  # One scale for the whole weight would lose the small rows.
    projection = Projection((linear.bfloat16(),))
    x = torch.randn(2, 32, 64).bfloat16()
    ours, theirs = Fp8Projection(projection, float(x.abs().max()))(x).float(), projection(x).float()
    assert ours.shape == theirs.shape
    errors = (ours - theirs).norm(dim=(0, 1)) / theirs.norm(dim=(0, 1))
    assert 1e-3 < float(errors.max()) < 0.06
    small = Fp8Projection(projection, 0.5)(10 * torch.sign(x))
    assert torch.equal(small, Fp8Projection(projection, 0.5)(torch.sign(x)))  # Both are beyond the bound.
    assert scale_of(0.0) == 1.0 and scale_of(GREATEST) == 1.0
    assert float(to_e4m3(torch.tensor([1e6])).float()) == GREATEST


@torch.no_grad()
def test_fp8_attention_is_near_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 24, 3, 16).bfloat16() for _ in range(3))
    wanted = Attend()(q, k, v).float()
    bounds = [float(part.abs().max()) for part in (q, k, v, wanted)]
    ours = Fp8Attend([scale_of(bound) for bound in bounds], torch.device("cpu"))(q, k, v).float()
    assert ours.shape == wanted.shape == (2, 24, 48)
    assert 1e-3 < float((ours - wanted).norm() / wanted.norm()) < 0.08


def test_fp8_attention_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    need_fp8("cpu")
    monkeypatch.setattr("gpu.flux.attention.find_spec", lambda name: None)
    with pytest.raises(SkipPartError, match="not available: FP8 attention needs the package nvidia-cudnn-frontend"):
        need_fp8("cuda")
