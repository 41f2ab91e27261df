"""Style LoRAs: merged as diffusers and peft fuse them, whatever their keys; nothing in them is passed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from export.errors import MergeError
from export.weights.lora import parse_lora, read_lora, split_scale
from export.weights.merge import merge
from tests.export.pipelines import MODES
from tests.export.weights.lora_bench import (
    ALPHA,
    FLUX_TARGETS,
    QWEN_TARGETS,
    RANK,
    TARGETS,
    Bench,
    factors,
    make_benches,
    save,
)


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    return make_benches(tmp_path_factory.mktemp("benches"))


@pytest.fixture
def flux(benches: dict[str, Bench]) -> Bench:
    return benches["flux"]


def check_equal(given: dict[str, Tensor], truth: dict[str, Tensor], changed: int = 1) -> None:
    assert set(given) == set(truth)
    for name, tensor in truth.items():
        torch.testing.assert_close(given[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def fused_base(bench: Bench, state: Any, scale: float, out: Path, **options: Any) -> Path:
    """The base's transformer with the LoRA fused into it by diffusers and peft, as a folder."""
    model = bench.transformer()
    model.load_lora_adapter(state, prefix="transformer", **options)
    model.fuse_lora(lora_scale=scale)
    model.unload_lora()
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("name", ["flux", "qwen"])
@pytest.mark.parametrize("scale", [1.0, -0.6])
def test_a_lora_that_peft_made_and_diffusers_saved(
    benches: dict[str, Bench], tmp_path: Path, name: str, scale: float
) -> None:
    from diffusers import FluxPipeline, QwenImagePipeline
    from diffusers.utils.peft_utils import get_adapter_name
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    bench = benches[name]
    model, last = bench.transformer(), TARGETS[name][-1]
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS[name]), rank_pattern={last: 2}, alpha_pattern={last: 7},
        init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(1)
    model.add_adapter(config, get_adapter_name(model))
    pipeline = FluxPipeline if name == "flux" else QwenImagePipeline
    pipeline.save_lora_weights(
        tmp_path / "lora",
        transformer_lora_layers=get_peft_model_state_dict(model, adapter_name="default_0"),
        transformer_lora_adapter_metadata=json.loads(json.dumps(config.to_dict(), default=list)),
    )
    model.fuse_lora(lora_scale=scale)
    model.unload_lora()
    model.save_pretrained(tmp_path / "fused")
    lora = parse_lora(f"{tmp_path / 'lora'}:{scale}", name)
    assert set(lora.modules) == set(TARGETS[name])
    check_equal(bench.merged(lora), bench.merged(base=tmp_path / "fused"))


def kohya(pairs: dict[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The pairs in kohya's style: flat names, down, up, and an alpha."""
    flat: dict[str, Tensor] = {}
    for key, tensor in pairs.items():
        module, half = key.removeprefix("transformer.").split(".lora_")
        flat[f"{rename(module)}.lora_{'down' if half[0] == 'A' else 'up'}.weight"] = tensor
        flat[f"{rename(module)}.alpha"] = torch.tensor(ALPHA)
    return flat


BFL = {
    "transformer_blocks.0.attn.to_out.0": "double_blocks_0_img_attn_proj",
    "transformer_blocks.1.ff.net.0.proj": "double_blocks_1_img_mlp_0",
    "transformer_blocks.0.norm1.linear": "double_blocks_0_img_mod_lin",
    "transformer_blocks.1.ff_context.net.2": "double_blocks_1_txt_mlp_2",
    "single_transformer_blocks.0.proj_out": "single_blocks_0_linear2",
    "single_transformer_blocks.1.norm.linear": "single_blocks_1_modulation_lin",
}


def test_kohya_keys_for_flux(flux: Bench, tmp_path: Path) -> None:
    pairs = factors(flux, tuple(BFL))
    flat = kohya(pairs, lambda module: f"lora_unet_{BFL[module]}")
    fused = fused_base(flux, pairs, ALPHA / RANK, tmp_path / "fused")
    lora = read_lora(save(tmp_path / "kohya.safetensors", flat), "flux")
    check_equal(flux.merged(lora), flux.merged(base=fused))


def test_fused_attention_of_kohya_is_taken_apart(flux: Bench, tmp_path: Path) -> None:
    rows, columns = flux.shape("transformer_blocks.0.attn.to_q")
    generator = torch.Generator().manual_seed(2)
    down, up = torch.randn(RANK, columns, generator=generator), torch.randn(3 * rows, RANK, generator=generator)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    flat = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    plain, merged = flux.merged(), flux.merged(read_lora(save(tmp_path / "qkv.safetensors", flat), "flux", 0.5))
    for part, third in zip("qkv", up.split(rows), strict=True):
        key = f"transformer_blocks.0.attn.to_{part}.weight"
        torch.testing.assert_close(merged[key] - plain[key], 0.5 / RANK * third @ down, rtol=1e-4, atol=1e-5)


def test_what_diffusers_forgets_of_kohyas_keys_is_merged(flux: Bench, tmp_path: Path) -> None:
    """Its converter leaves the first and last layers without a prefix, so that its loader passes them over, and drops
    the last layer's alphas."""
    pairs = factors(flux, ("x_embedder", "proj_out", "norm_out.linear"))
    names = {
        "x_embedder": "img_in",
        "proj_out": "final_layer_linear",
        "norm_out.linear": "final_layer_adaLN_modulation_1",
    }
    flat = kohya(pairs, lambda module: f"lora_unet_{names[module]}")
    plain, merged = flux.merged(), flux.merged(read_lora(save(tmp_path / "ends.safetensors", flat), "flux"))
    delta = {
        module: ALPHA
        / RANK
        * pairs[f"transformer.{module}.lora_B.weight"]
        @ pairs[f"transformer.{module}.lora_A.weight"]
        for module in names
    }
    shift, scale = delta["norm_out.linear"].chunk(2)
    wanted = {
        "x_embedder.weight": delta["x_embedder"],
        "norm_out.linear.weight": torch.cat([scale, shift]),  # the original model has them the other way about
        "proj_out.means.weight": delta["proj_out"].repeat(MODES, 1),
    }
    for name, tensor in plain.items():
        difference = wanted.get(name, torch.zeros_like(tensor))
        # norm_out and the head come from an adapter in bfloat16, and are rounded to it
        torch.testing.assert_close(merged[name].float(), tensor.float() + difference, rtol=1e-2, atol=1e-5)


def test_a_lora_on_the_velocity_head_changes_the_velocity_as_the_teachers(flux: Bench, tmp_path: Path) -> None:
    from arcflow.students import build_student

    pairs = factors(flux, ("proj_out",))
    styled = merge(flux.folder, flux.sources.adapter, [read_lora(save(tmp_path / "x.safetensors", pairs), "flux")])
    plain = merge(flux.folder, flux.sources.adapter)
    config = {key: value for key, value in styled.config.items() if not key.startswith("_")}
    features = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(3))
    velocities = []
    for each in (styled, plain):
        weights = each.weights
        head: Any = build_student(config, MODES).proj_out
        state = {name: weights.rows_float32(name, 0, weights[name].shape[0]) for name in weights}
        head.load_state_dict({k.removeprefix("proj_out."): v for k, v in state.items() if k.startswith("proj_out.")})
        field = head(features)
        gates = field.logweights.exp().repeat(1, 1, 1, field.means.shape[-1] // 4)
        velocities.append((gates * field.means).sum(dim=2))
    delta = pairs["transformer.proj_out.lora_B.weight"] @ pairs["transformer.proj_out.lora_A.weight"]
    torch.testing.assert_close(velocities[0] - velocities[1], features @ delta.T, rtol=1e-4, atol=1e-4)


ORIGINAL = {
    "transformer_blocks.0.attn.to_out.0": "double_blocks.0.img_attn.proj",
    "transformer_blocks.1.ff.net.0.proj": "double_blocks.1.img_mlp.0",
    "transformer_blocks.1.ff_context.net.2": "double_blocks.1.txt_mlp.2",
    "single_transformer_blocks.0.proj_out": "single_blocks.0.linear2",
    "single_transformer_blocks.1.norm.linear": "single_blocks.1.modulation.lin",
}


@pytest.mark.parametrize("halves", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
@pytest.mark.parametrize("names", ["original", "diffusers"])
def test_comfyui_keys_for_flux(flux: Bench, tmp_path: Path, names: str, halves: tuple[str, str]) -> None:
    pairs, flat = factors(flux, tuple(ORIGINAL)), dict[str, Tensor]()
    fused = fused_base(flux, pairs, ALPHA / RANK, tmp_path / "fused")
    for module, original in ORIGINAL.items():
        stem = f"diffusion_model.{module if names == 'diffusers' else original}"
        for half, old in zip(halves, "AB", strict=True):
            flat[f"{stem}.{half}.weight"] = pairs[f"transformer.{module}.lora_{old}.weight"]
        flat[f"{stem}.alpha"] = torch.tensor(ALPHA)
    lora = read_lora(save(tmp_path / "comfy.safetensors", flat), "flux")
    assert set(lora.modules) == set(ORIGINAL)
    check_equal(flux.merged(lora), flux.merged(base=fused))


def test_comfyui_keys_for_qwen_with_halves_as_peft_names_them(benches: dict[str, Bench], tmp_path: Path) -> None:
    bench = benches["qwen"]
    pairs = factors(bench, QWEN_TARGETS)
    path = tmp_path / "x.safetensors"
    save(path, {key.replace("transformer.", "diffusion_model.", 1): tensor for key, tensor in pairs.items()})
    fused = fused_base(bench, pairs, 1.0, tmp_path / "fused")
    check_equal(bench.merged(read_lora(path, "qwen")), bench.merged(base=fused))


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model.", "", "transformer."])
def test_other_keys_for_qwen(benches: dict[str, Bench], tmp_path: Path, prefix: str) -> None:
    bench = benches["qwen"]
    targets = tuple(target for target in QWEN_TARGETS if target != "img_in")
    pairs = factors(bench, targets)
    flat = kohya(pairs, lambda m: prefix + (m.replace(".", "_") if prefix.endswith("_") else m))
    fused = fused_base(bench, pairs, ALPHA / RANK, tmp_path / "fused")
    lora = read_lora(save(tmp_path / "x.safetensors", flat), "qwen")
    assert set(lora.modules) == set(targets)
    check_equal(bench.merged(lora), bench.merged(base=fused))


@pytest.mark.parametrize("rslora", [False, True])
def test_keys_of_peft_itself_need_its_configuration(flux: Bench, tmp_path: Path, rslora: bool) -> None:
    pairs = factors(flux, FLUX_TARGETS)
    path = tmp_path / "peft" / "adapter_model.safetensors"
    save(path, {key.replace("transformer.", "base_model.model.", 1): tensor for key, tensor in pairs.items()})
    with pytest.raises(MergeError, match=r"adapter_config\.json, which gives its scale, is not beside it; copy"):
        read_lora(path.parent, "flux")
    config = {"r": RANK, "lora_alpha": ALPHA, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": rslora}
    (path.parent / "adapter_config.json").write_text(json.dumps(config))
    fused = fused_base(flux, pairs, ALPHA / (RANK**0.5 if rslora else RANK), tmp_path / "fused")
    lora = read_lora(path.parent, "flux")
    check_equal(flux.merged(lora), flux.merged(base=fused))
    (path.parent / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1.0}))
    assert read_lora(path.parent, "flux").digest != lora.digest


def test_several_add_up_and_a_digest_is_of_all(flux: Bench, tmp_path: Path) -> None:
    module = FLUX_TARGETS[0]
    first, second = (
        read_lora(save(tmp_path / f"{seed}.safetensors", factors(flux, (module,), seed)), "flux", 0.5)
        for seed in (1, 2)
    )
    plain, both = flux.merged(), flux.merged(first, second)
    key = f"{module}.weight"
    alone = [flux.merged(lora)[key] - plain[key] for lora in (first, second)]
    torch.testing.assert_close(both[key] - plain[key], sum(alone), rtol=1e-4, atol=1e-5)
    digests = {
        merge(flux.folder, flux.sources.adapter, loras).digest for loras in ([], [first], [second], [first, second])
    }
    assert len(digests) == 4


def test_a_wide_layer_of_flux_is_taken_apart_at_its_true_size(tmp_path: Path) -> None:
    name = "lora_unet_single_blocks_37_linear1"
    up = torch.randn(21504, 1)
    flat = {f"{name}.lora_down.weight": torch.randn(1, 3072), f"{name}.lora_up.weight": up}
    lora = read_lora(save(tmp_path / "wide.safetensors", flat), "flux")
    block = "single_transformer_blocks.37"
    assert set(lora.modules) == {f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v", f"{block}.proj_mlp"}
    parts = [
        lora.tensors.read(lora.modules[f"{block}.{m}"][1]) for m in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    assert torch.equal(torch.cat(parts), up)


def test_a_scale_follows_the_last_colon(tmp_path: Path) -> None:
    assert split_scale("a/b.safetensors:0.8") == ("a/b.safetensors", 0.8)
    assert split_scale("a/b.safetensors") == ("a/b.safetensors", 1.0)
    assert split_scale("C:\\x\\y.safetensors") == ("C:\\x\\y.safetensors", 1.0)
    assert split_scale("owner/name@v1:-2") == ("owner/name@v1", -2.0)
    (tmp_path / "odd:1").write_text("")
    assert split_scale(str(tmp_path / "odd:1")) == (str(tmp_path / "odd:1"), 1.0)
    for scale in ("nan", "inf", "-101"):
        with pytest.raises(MergeError, match="allowed: -100 to 100"):
            split_scale(f"x:{scale}")
