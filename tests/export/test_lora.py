"""Style LoRAs: merged as diffusers and peft fuse them, whatever their keys; nothing in them is passed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.errors import MergeError, WeightsError
from export.lora import StyleLora, parse_lora, read_lora, split_scale
from export.merge import merged_student, plan_merge
from foundation.errors import ArcFlowError
from tests.export.pipelines import MODES, Sources, small_flux, small_qwen

FLUX_TARGETS = (
    "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k", "transformer_blocks.0.attn.to_v",
    "transformer_blocks.1.attn.to_out.0", "transformer_blocks.1.ff.net.0.proj", "transformer_blocks.0.norm1.linear",
    "single_transformer_blocks.0.proj_out", "x_embedder", "time_text_embed.timestep_embedder.linear_1",
)  # fmt: skip
QWEN_TARGETS = (
    "transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.add_k_proj", "transformer_blocks.1.attn.to_add_out",
    "transformer_blocks.0.attn.to_out.0", "transformer_blocks.2.img_mlp.net.0.proj", "transformer_blocks.0.img_mod.1",
    "transformer_blocks.1.txt_mlp.net.2", "img_in",
)  # fmt: skip
TARGETS = {"flux": FLUX_TARGETS, "qwen": QWEN_TARGETS}
RANK = 3
ALPHA = 5.0


@dataclass(frozen=True)
class Bench:
    """A small pipeline's sources and what is needed to fuse a LoRA into its transformer."""

    name: str
    sources: Sources

    @property
    def folder(self) -> Path:
        return self.sources.base / "transformer"

    def transformer(self) -> Any:
        from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel

        kind = FluxTransformer2DModel if self.name == "flux" else QwenImageTransformer2DModel
        return kind.from_pretrained(self.folder, local_files_only=True)

    def shape(self, module: str) -> tuple[int, int]:
        weights = plan_merge(self.folder, self.sources.adapter).base
        rows, columns = weights[f"{module}.weight"].shape
        return rows, columns

    def merged(self, *loras: StyleLora, base: Path | None = None) -> dict[str, Tensor]:
        plan = plan_merge(base or self.folder, self.sources.adapter, loras)
        weights = merged_student(plan, "base", "adapter").weights
        return {name: weights.read(name) for name in weights}


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    root = tmp_path_factory.mktemp("benches")
    made = {"flux": small_flux(root / "flux"), "qwen": small_qwen(root / "qwen")}
    return {name: Bench(name, sources) for name, sources in made.items()}


@pytest.fixture
def flux(benches: dict[str, Bench]) -> Bench:
    return benches["flux"]


def factors(bench: Bench, targets: tuple[str, ...], seed: int = 0) -> dict[str, Tensor]:
    """Random pairs for these modules, by diffusers' names with the prefix."""
    generator, pairs = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for module in targets:
        rows, columns = bench.shape(module)
        pairs[f"transformer.{module}.lora_A.weight"] = 0.3 * torch.randn(RANK, columns, generator=generator)
        pairs[f"transformer.{module}.lora_B.weight"] = 0.3 * torch.randn(rows, RANK, generator=generator)
    return pairs


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, metadata)
    return path


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
    plan = plan_merge(flux.folder, flux.sources.adapter, [read_lora(save(tmp_path / "x.safetensors", pairs), "flux")])
    plain = plan_merge(flux.folder, flux.sources.adapter)
    config = {key: value for key, value in plan.config.items() if not key.startswith("_")}
    features = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(3))
    velocities = []
    for each in (plan, plain):
        weights = merged_student(each, "", "").weights
        head: Any = build_student(config, MODES).proj_out
        state = {name: weights.rows_float32(name, 0, weights[name].shape[0]) for name in weights}
        head.load_state_dict({k.removeprefix("proj_out."): v for k, v in state.items() if k.startswith("proj_out.")})
        field = head(features)
        gates = field.logweights.exp().repeat(1, 1, 1, field.means.shape[-1] // 4)
        velocities.append((gates * field.means).sum(dim=2))
    delta = pairs["transformer.proj_out.lora_B.weight"] @ pairs["transformer.proj_out.lora_A.weight"]
    torch.testing.assert_close(velocities[0] - velocities[1], features @ delta.T, rtol=1e-4, atol=1e-4)


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
    with pytest.raises(WeightsError, match=r"adapter_config\.json"):
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
        merged_student(plan_merge(flux.folder, flux.sources.adapter, loras), "b", "a").digest
        for loras in ([], [first], [second], [first, second])
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


def edited(change: Callable[[dict[str, Tensor]], object]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def edit(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        change(tensors)
        return tensors

    return edit


Q = "transformer.transformer_blocks.0.attn.to_q"
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
    "two ranks": (edited(lambda t: t.update({f"{Q}.lora_B.weight": torch.zeros(32, 4)})), "differ in rank"),
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
        plan_merge(flux.folder, flux.sources.adapter, [read_lora(path, "flux")])


def test_a_lora_of_another_architecture_is_refused(benches: dict[str, Bench], tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", factors(benches["qwen"], QWEN_TARGETS[-2:]))
    flux = benches["flux"]
    with pytest.raises(MergeError, match="find no weight in the base: img_in"):
        plan_merge(flux.folder, flux.sources.adapter, [read_lora(path, "flux")])


def test_a_scale_too_large_is_refused_where_it_is_merged(flux: Bench, tmp_path: Path) -> None:
    pairs = {key: 1e19 * tensor for key, tensor in factors(flux, FLUX_TARGETS[:1]).items()}
    lora = read_lora(save(tmp_path / "x.safetensors", pairs), "flux", 100.0)
    with pytest.raises(MergeError, match="not finite in F32; lower the scale"):
        flux.merged(lora)


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


def test_where_a_lora_is_looked_for(flux: Bench, tmp_path: Path) -> None:
    with pytest.raises(ArcFlowError, match=r"no LoRA at \./nowhere"):
        parse_lora("./nowhere:2", "flux")
    (tmp_path / "x.ckpt").write_text("")
    with pytest.raises(MergeError, match=r"no \.safetensors file"):
        read_lora(tmp_path / "x.ckpt", "flux")
    with pytest.raises(MergeError, match="found: none"):
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
