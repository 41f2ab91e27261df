"""LoRAs that cannot be merged: each rejected with what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from export.errors import MergeError, WeightsError
from export.weights.lora import parse_lora, read_lora
from export.weights.merge import merge
from foundation.errors import ArcFlowError
from tests.export.weights.lora_bench import FLUX_TARGETS, QWEN_TARGETS, RANK, Bench, factors, make_benches, save


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    return make_benches(tmp_path_factory.mktemp("benches"))


@pytest.fixture
def flux(benches: dict[str, Bench]) -> Bench:
    return benches["flux"]


def edited(change: Callable[[dict[str, Tensor]], object]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def edit(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        change(tensors)
        return tensors

    return edit


Q = "transformer.transformer_blocks.0.attn.to_q"
WIDE = "transformer.transformer_blocks.0.ff.net.0.proj"
STRAY = {"lora_unet_x.lora_down.weight": torch.ones(1, 2), "lora_unet_x.lora_up.weight": torch.ones(5, 1)}
FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "text encoder": (
        lambda t: {**t, "text_encoder.text_model.x.lora_A.weight": torch.zeros(3, 4)},
        r"changes text encoders as well \(1 keys, text_encoder",
    ),
    "kohya's text encoder": (lambda t: {**t, "lora_te1_x.lora_up.weight": torch.zeros(3, 4)}, "changes text encoders"),
    "DoRA": (lambda t: {**t, f"{Q}.lora_magnitude_vector": torch.zeros(32)}, "more than LoRA pairs: .*magnitude"),
    "a changed norm": (lambda t: {**t, "diffusion_model.norm.diff": torch.zeros(3)}, "more than LoRA pairs"),
    "LoKr": (lambda t: {f"{Q}.lokr_w1": torch.zeros(3)}, "more than LoRA pairs"),
    "a bias": (lambda t: {**t, f"{Q}.lora_B.bias": torch.zeros(32)}, "more than LoRA pairs"),
    "half a pair": (edited(lambda t: t.pop(f"{Q}.lora_B.weight")), r"lacks .*to_q\.lora_B\.weight"),
    "a homeless pair": (
        lambda t: {key.replace("blocks.0", "blocks.7"): tensor for key, tensor in t.items()},
        r"modules of the LoRA .* find no weight in the base: .*blocks\.7",
    ),
    "a norm's gain": (
        lambda t: {key.replace("to_q", "norm_q"): tensor for key, tensor in t.items()},
        r"find no weight in the base: .*norm_q",
    ),
    "another width": (
        edited(lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(RANK, 33)})),
        r"to_q\.lora_A\.weight has shape \[3, 33\] .* \[3, 32\] is needed; use a LoRA",
    ),
    "another height": (
        edited(lambda t: t.update({f"{Q}.lora_B.weight": torch.zeros(33, RANK)})),
        r"to_q\.lora_B\.weight has shape \[33, 3\]",
    ),
    "two ranks": (
        edited(lambda t: t.update({f"{Q}.lora_B.weight": torch.zeros(32, 4)})),
        r"to_q\.lora_A\.weight \[3, 32\] and .*lora_B\.weight \[32, 4\] differ in rank \(3 and 4\); A must be",
    ),
    "swapped": (
        lambda t: {key.translate(str.maketrans("AB", "BA")): tensor for key, tensor in t.items()},
        r"to_q\.lora_A\.weight \[32, 3\] and .* are swapped or transposed; A must be \[rank, inputs\]",
    ),
    "transposed": (lambda t: {key: tensor.T for key, tensor in t.items()}, "are swapped or transposed; A must be"),
    "a wide layer swapped": (
        lambda _: {f"{WIDE}.lora_A.weight": torch.zeros(128, 3), f"{WIDE}.lora_B.weight": torch.zeros(3, 32)},
        "are swapped or transposed; A must be",
    ),
    "not a number": (edited(lambda t: t[f"{Q}.lora_A.weight"].fill_(float("nan"))), r"lora_A\.weight has values"),
    "whole numbers": (
        edited(lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(RANK, 32, dtype=torch.int8)})),
        "of type I8; allowed",
    ),
    "a convolution": (edited(lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(RANK, 32, 1, 1)})), "is no matrix"),
    "an alpha alone": (lambda t: {**t, "transformer.x.alpha": torch.tensor(1.0)}, r"x\.alpha belongs to no LoRA pair"),
    "nothing": (lambda _: {"x.alpha": torch.tensor(1.0)}, "has no LoRA pairs"),
    "an unknown layer of kohya's": (
        lambda t: {
            f"lora_unet_{name}.{half}.weight": torch.zeros(RANK, RANK)
            for name in ("double_blocks_0_img_mlp_0", "double_blocks_99_img_mlp_0") for half in ("lora_down", "lora_up")
        },
        "diffusers cannot convert the keys of .* for flux .*blocks_99",
    ),
    "two styles of which diffusers drops one": (
        lambda t: {**t, **STRAY},
        "5 of 37 rows belong to no module that is known",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_lora_is_refused(flux: Bench, tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    path = save(tmp_path / "x.safetensors", change(factors(flux, (Q.removeprefix("transformer."),))))
    with pytest.raises(MergeError, match=message):
        merge(flux.folder, flux.sources.adapter, [read_lora(path, "flux")])


def test_a_lora_of_another_architecture_is_refused(benches: dict[str, Bench], tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", factors(benches["qwen"], QWEN_TARGETS[-2:]))
    flux = benches["flux"]
    with pytest.raises(MergeError, match="find no weight in the base: img_in"):
        merge(flux.folder, flux.sources.adapter, [read_lora(path, "flux")])


def test_a_scale_too_large_is_refused_where_it_is_merged(flux: Bench, tmp_path: Path) -> None:
    pairs = {key: 1e19 * tensor for key, tensor in factors(flux, FLUX_TARGETS[:1]).items()}
    lora = read_lora(save(tmp_path / "x.safetensors", pairs), "flux", 100.0)
    with pytest.raises(MergeError, match="not finite in F32; lower the scale"):
        flux.merged(lora)


def test_where_a_lora_is_looked_for(flux: Bench, tmp_path: Path) -> None:
    with pytest.raises(ArcFlowError, match=r"no LoRA at \./nowhere"):
        parse_lora("./nowhere:2", "flux")
    (tmp_path / "x.ckpt").write_text("")
    with pytest.raises(MergeError, match=r"no \.safetensors file"):
        read_lora(tmp_path / "x.ckpt", "flux")
    with pytest.raises(MergeError, match=r"found: none; x\.ckpt there is a pickle"):
        read_lora(tmp_path, "flux")
    for name in ("a", "b"):
        save(tmp_path / f"{name}.safetensors", factors(flux, FLUX_TARGETS[:1]))
    with pytest.raises(MergeError, match=r"found: a\.safetensors, b\.safetensors"):
        read_lora(tmp_path, "flux")
    path = tmp_path / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="truncated"):
        read_lora(path, "flux")
    assert load_file(tmp_path / "b.safetensors")
