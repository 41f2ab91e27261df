"""Part (e) on the CPU at a small size: operations, stages, FP8 linears, and what is replaced by them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpu.backbone import Backbone, BackboneSize
from gpu.fp8 import Fp8Linear, quantise, to_fp8
from gpu.parts.flux import MODES, USUAL, Baseline, Mode, compiled, count_operations
from tests.gpu.recorder import Recorder
from tests.gpu.test_backbone import SMALL


def test_operations_of_flux_at_full_size() -> None:
    assert count_operations(BackboneSize(), 64, 512) == pytest.approx(74.4e12, rel=1e-3)


def test_a_mode_gives_both_evaluations_and_the_solver() -> None:
    emit, baseline = Recorder(), Baseline(SMALL, "cpu", 3, 5)
    baseline.measure(emit, "eager", 3)
    (record,) = emit.records
    assert record["finite"] and record["rounds"] == 3 and record["rate"] > 0
    assert record["both_ms"] > record["evaluation_ms"] > 0 < record["solver_ms"]
    baseline.measure(emit, "diffusers", 1)
    assert emit.records[1]["difference_from_first_mode"] < 1e-6


def test_eager_comes_first_and_all_usual_modes_are_known() -> None:
    assert set(USUAL) <= set(MODES) and USUAL[0] == "eager"  # The others are compared with it.


def test_fp8_leaves_the_other_modes_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODES, "fp8", Mode(fp8=True))  # type: ignore[misc]
    emit, baseline = Recorder(), Baseline(SMALL, "cpu", 4, 8)
    for name in ("eager", "fp8", "eager"):
        baseline.measure(emit, name, 1)
    _, fp8, again = emit.records
    assert fp8["fp8_linears"] == 2 * 12 + 2 * 5 and again["fp8_linears"] == 0
    assert 0 < fp8["difference_from_first_mode"] < 0.1 and again["difference_from_first_mode"] == 0


def test_what_only_other_modes_need_is_not_counted() -> None:
    baseline = Baseline(SMALL, "cpu", 3, 5)
    assert baseline._unused(baseline.model) == baseline._unused(baseline._twin()) == 0
    twin = baseline._twin()
    before = [module for name, module in twin.named_modules() if isinstance(module, nn.Linear)]
    to_fp8(twin)
    after = {id(module) for module in twin.modules()}
    gone = [module for module in before if id(module) not in after]
    assert baseline._unused(twin) == sum(module.weight.numel() * 2 for module in gone)  # Biases stay.


def test_blocks_are_compiled_only_inside() -> None:
    model = Backbone(SMALL)
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    with compiled(model, MODES["blocks"]):
        assert all(block._compiled_call_impl is not None for block in blocks)
    assert all(block._compiled_call_impl is None for block in blocks)


def test_quantised_rows_keep_their_size() -> None:
    x = torch.randn(64, 128) * torch.logspace(-3, 3, 64)[:, None]
    rows, scale = quantise(x)
    back = rows.float() * scale
    assert rows.dtype == torch.float8_e4m3fn and scale.shape == (64, 1)
    assert float(((back - x).norm(dim=1) / x.norm(dim=1)).max()) < 0.04
    assert float(rows.float().abs().max()) == 448.0


def test_an_fp8_linear_is_near_the_one_it_replaces() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48).bfloat16()
    x = torch.randn(2, 32, 64).bfloat16()
    with torch.no_grad():
        ours, theirs = Fp8Linear(linear)(x).float(), linear(x).float()
    assert ours.shape == theirs.shape
    assert 1e-3 < float((ours - theirs).norm() / theirs.norm()) < 0.06


def test_modulation_embeddings_and_head_stay() -> None:
    model = Backbone(SMALL).bfloat16()
    assert to_fp8(model) == 2 * 12 + 2 * 5
    kept = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {"x_embedder", "proj_out.means", "norm_out.linear", "single_transformer_blocks.0.norm.linear"} <= kept
    assert not any(name.endswith(("proj_mlp", "to_q", "ff.net.2")) for name in kept)
