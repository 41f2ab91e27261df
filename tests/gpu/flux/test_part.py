"""The part ``flux`` on the CPU at a small size: operations, modes, what is compiled, prompt to image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo as dynamo
from torch.utils.flop_counter import FlopCounterMode

from gpu.catalogue import PARTS, Options
from gpu.flux.backbone import Backbone, BackboneSize, inputs
from gpu.flux.baseline import Baseline, compiled, kernel_solver
from gpu.flux.modes import MODES, USUAL
from gpu.parts import flux
from gpu.timing import recorded
from runtime.cuda.interface import Advance
from tests.gpu.flux.test_backbone import SMALL
from tests.gpu.recorder import Recorder
from tests.runtime.cuda.stand_in import StandInDevice

REHEARSAL = Options(smoke=True, rehearse=True)


@pytest.mark.parametrize(("size", "side", "text"), [(BackboneSize(), 64, 512), (SMALL, 3, 5)])
def test_operations_are_those_that_torch_counts(size: BackboneSize, side: int, text: int) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        given = {name: value.to("meta") for name, value in inputs(size, side, text, "meta", torch.float32).items()}
        Backbone(size)(torch.empty(1, side * side, size.in_channels), timestep=torch.empty(1), **given)
    assert size.operations(side * side, text) == counter.get_total_flops()


def test_modes_of_every_kind_agree_with_eager(tmp_path: Path) -> None:
    emit, options = Recorder(), replace(REHEARSAL, out=tmp_path)
    for name in ("eager", "diffusers", "fused", "cudnn", "fp8", "fp8-attention"):
        flux.measure(emit, options, name, "cpu")
    eager, *others = emit.records
    assert eager["operations"] == flux.sizes(options)[0].operations(16, 8) and eager["difference_from_eager"] == 0
    for record in (eager, *others):
        assert record["finite"] and record["same_again"] and record["both"]["samples"] == 2 and record["rate"] > 0
        assert record["both"]["median_s"] > 0 < record["evaluation"]["median_s"] and record["how"] in (
            "launched",
            "eager",
        )
        assert record["difference_from_eager"] < (1e-6 if record["fp8_linears"] == 0 else 1e-2)
    assert [record["fp8_linears"] for record in others] == [0, 0, 0, 20, 20]


def test_from_the_prompts_ids_to_the_images_bytes(tmp_path: Path) -> None:
    emit = Recorder()
    flux.measure(emit, replace(REHEARSAL, out=tmp_path), "image", "cpu")
    mode, t5, clip, vae, whole = emit.records
    assert mode["difference_from_eager"] is None  # Nothing to compare with was left.
    assert [record["what"] for record in (t5, clip, vae)] == ["FLUX, T5-XXL", "FLUX, CLIP-L", "FLUX, VAE decoder"]
    assert set(whole["stages"]) == {"T5-XXL", "CLIP-L", "VAE decoder"} and "64x64 bytes" in whole["show"]
    assert whole["median_s"] > 0


def test_true_size_ends_are_those_of_flux() -> None:
    import json

    from gpu.flux.ends import CONFIGURATIONS

    given = json.loads(CONFIGURATIONS.read_text())
    size = BackboneSize()
    assert given["text_encoder_2/config.json"]["d_model"] == size.joint_attention_dim
    assert given["text_encoder/config.json"]["hidden_size"] == size.pooled_projection_dim
    assert 4 * given["vae/config.json"]["latent_channels"] == size.in_channels


def test_decoding_unpacks_as_the_runtime_does() -> None:
    from gpu.flux.ends import Ends
    from runtime.architectures import layout

    seen: list[torch.Tensor] = []

    class Vae:
        def decode(self, latent: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            seen.append(latent)
            return (torch.zeros(1, 3, 8, 8),)

    ends = Ends(torch.nn.Identity(), torch.nn.Identity(), Vae(), 0.5, 0.25, 4)
    x = torch.randn(1, 16, 12).bfloat16().float()
    assert ends.decode(x).shape == (8, 8, 3)
    wanted = layout.unpack(x.numpy(), 4, 4, 2) / 0.5 + 0.25
    np.testing.assert_allclose(seen[0].float().numpy(), wanted, rtol=1e-2, atol=1e-2)


def test_the_modes_that_are_usual() -> None:
    assert set(USUAL) < set(MODES) and USUAL[0] == "eager"  # The others are compared with it.
    assert "whole" not in USUAL and "autotune" not in USUAL
    assert PARTS["flux"].modes == tuple(MODES) and PARTS["flux"].usual == USUAL


def test_the_runtimes_kernel_takes_the_step() -> None:
    steps: list[Advance] = []

    class Device(StandInDevice):
        def advance(self, step: Advance) -> None:
            steps.append(step)

    field = Backbone(SMALL)(torch.randn(1, 9, 16), timestep=torch.ones(1), **inputs(SMALL, 3, 5, "cpu", torch.float32))
    x = torch.randn(1, 9, 16)
    out = kernel_solver(Device())(field[0], x, 0.8, 0.3)
    (step,) = steps
    assert (step.x, step.out) == (x.data_ptr(), out.data_ptr()) and out.shape == x.shape
    assert (step.tokens, step.modes, step.channels, step.positions) == (9, 4, 16, 4)
    assert (step.sigma_src, step.sigma_a, step.sigma_b, step.dtype) == (0.8, 0.8, 0.3, "float32")


def test_blocks_are_compiled_only_inside() -> None:
    model = Backbone(SMALL)
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    with compiled(model, MODES["blocks"]):
        assert all(block._compiled_call_impl is not None for block in blocks)
    assert all(block._compiled_call_impl is None for block in blocks)
    with compiled(model, MODES["whole"]):
        assert model._compiled_call_impl is not None


def test_one_compiled_block_serves_all_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three graphs for any number of blocks, in FP8 too: double, single, solver. No backend is needed to see that."""
    given: Callable[..., Any] = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **more: given(function, backend="eager"))
    monkeypatch.setattr(torch.nn.Module, "compile", _compile_eagerly)
    size = replace(flux.sizes(REHEARSAL)[0], num_layers=10, num_single_layers=10)
    made = Baseline(size, replace(MODES["fp8-attention"], attention="fp8"), "cpu", 4, 8)
    with torch.no_grad():
        wanted = made.generate()
    with made.ready(None):
        assert float((made.generate() - wanted).norm() / wanted.norm()) < 1e-3
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 3 and not dynamo.utils.counters["graph_break"]


def _compile_eagerly(self: torch.nn.Module, **options: Any) -> None:
    self._compiled_call_impl = torch._dynamo.optimize("eager")(self._call_impl)


def test_what_cannot_be_recorded_stays_as_it_is() -> None:
    call, how = recorded(lambda: 7)
    assert call() == 7 and how == "eager"
