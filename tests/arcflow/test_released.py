"""Adapters as they are published load unchanged: no policy in the configuration, and keys with a prefix or without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from arcflow.adapter import CONFIG_FILE, WEIGHTS_FILE, merge_into, read_adapter, read_config
from arcflow.architectures import flux, qwen
from arcflow.errors import AdapterError
from arcflow.policy import Policy
from arcflow.students import build_student, lora_module_names

MODES, RANK = 3, 2
BASES: dict[str, dict[str, Any]] = {
    "flux": {
        "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 16, "out_channels": None,
        "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 24, "pooled_projection_dim": 12, "guidance_embeds": True, "axes_dims_rope": [4, 6, 6],
    },
    "qwen": {
        "_class_name": "QwenImageTransformer2DModel", "patch_size": 2, "in_channels": 16, "out_channels": 4,
        "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24,
        "guidance_embeds": False, "axes_dims_rope": [4, 6, 6],
    },
}  # fmt: skip
ARCHITECTURES: dict[str, Any] = {"flux": flux, "qwen": qwen}
DEFAULTS = {"flux": Policy(3.2, 3.5, 2, 1.0, "bfloat16"), "qwen": Policy(3.2, 4.0, 2, 1.0, "bfloat16")}


def plain(name: str) -> dict[str, Any]:
    return {k: v for k, v in BASES[name].items() if not k.startswith("_")}


def backbone(name: str) -> Any:
    torch.manual_seed(0)
    return ARCHITECTURES[name].build_backbone(plain(name)).eval()


def released(name: str, folder: Path, prefix: str = "", policy: object = {"type": "ArcFlow"}) -> dict[str, Tensor]:
    """Write an adapter by hand as the public code exports one, in float16; returns its tensors without prefix."""
    arch, base = ARCHITECTURES[name], backbone(name)
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}

    def add(key: str, *shape: int) -> None:
        tensors[key] = (0.1 * torch.randn(*shape, generator=generator)).half()

    for module in lora_module_names(base, arch):
        linear = base.get_submodule(module)
        add(f"{module}.lora_A.weight", RANK, linear.in_features)
        add(f"{module}.lora_B.weight", linear.out_features, RANK)
    width = base.proj_out.in_features
    heads = {"means": MODES * 16, "logweights": MODES * 4, "loggamma": (MODES - 1) * 4}
    for module, rows, columns in (
        ("norm_out.linear", 2 * width, width), *((f"proj_out_{h}", r, width) for h, r in heads.items())
    ):  # fmt: skip
        add(f"{module}.weight", rows, columns)
        add(f"{module}.bias", rows)
    # What the published classes register: no patch size, and the channels of a packed token.
    config = {k: v for k, v in plain(name).items() if k != "patch_size"}
    if name == "qwen":
        config = {**{k: v for k, v in config.items() if k != "guidance_embeds"}, "out_channels": 16}
    config |= {
        "_class_name": arch.ADAPTER_CLASS, "_diffusers_version": "0.35.1",
        "num_gaussians": MODES, "logweights_channels": 4,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    metadata = None if policy is None else {"policy_config": policy if isinstance(policy, str) else json.dumps(policy)}
    save_file({prefix + k: v for k, v in tensors.items()}, folder / WEIGHTS_FILE, metadata=metadata)
    return tensors


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("name", ["flux", "qwen"])
def test_it_loads_and_merges(name: str, prefix: str, tmp_path: Path) -> None:
    tensors = released(name, tmp_path, prefix)
    adapter = read_adapter(tmp_path)
    assert adapter.config.modes == MODES
    assert adapter.config.policy == DEFAULTS[name] and adapter.config.policy_source == "default"
    base = backbone(name)
    merged = merge_into(build_student(plain(name), MODES, name), base.state_dict(), adapter).state_dict()
    for module in lora_module_names(base, ARCHITECTURES[name]):
        a, b = (tensors[f"{module}.lora_{part}.weight"].double() for part in "AB")
        expected = base.get_submodule(module).weight.double() + b @ a
        torch.testing.assert_close(merged[f"{module}.weight"].double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(merged["proj_out.means.weight"], tensors["proj_out_means.weight"].float())
    assert torch.equal(merged["proj_out.loggammas.bias"], tensors["proj_out_loggamma.bias"].float())
    untouched = "transformer_blocks.0.attn.to_q.weight"
    assert torch.equal(merged[untouched], base.state_dict()[untouched])


def merge(name: str, folder: Path, **options: Any) -> Any:
    base = backbone(name)
    return merge_into(build_student(plain(name), MODES, name), base.state_dict(), read_adapter(folder), **options)


def rewrite(folder: Path, change: Callable[[str, Tensor], Tensor | None]) -> None:
    """Save the adapter again with each tensor as ``change`` gives it, or without it."""
    changed = {key: change(key, tensor) for key, tensor in load_file(folder / WEIGHTS_FILE).items()}
    save_file({k: v.contiguous() for k, v in changed.items() if v is not None}, folder / WEIGHTS_FILE)


@pytest.mark.parametrize("name", ["flux", "qwen"])
def test_pairs_that_are_missing_are_named(name: str, tmp_path: Path) -> None:
    released(name, tmp_path)
    rewrite(tmp_path, lambda key, tensor: None if "linear_2.lora" in key else tensor)
    missing = r"lacks the LoRA pairs of time_text_embed\.timestep_embedder\.linear_2 \(1 of the \d+ layers"
    with pytest.raises(AdapterError, match=missing):
        merge(name, tmp_path)
    key = "time_text_embed.timestep_embedder.linear_2.weight"
    assert torch.equal(merge(name, tmp_path, coverage="partial").state_dict()[key], backbone(name).state_dict()[key])


@pytest.mark.parametrize("rank", [1, 3, 40])
def test_any_rank_will_do(rank: int, tmp_path: Path) -> None:
    """Of 40 and more than the width too: square factors then look as if they lay the other way about."""
    released("flux", tmp_path)

    def deepen(key: str, tensor: Tensor) -> Tensor:
        if ".lora_" not in key:
            return tensor
        shape = (rank, tensor.shape[1]) if "lora_A" in key else (tensor.shape[0], rank)
        return torch.full(shape, 0.01)

    rewrite(tmp_path, deepen)
    merge("flux", tmp_path)


FACTORS: dict[str, tuple[Callable[[str, Tensor], Tensor], str]] = {
    "transposed": (lambda key, t: t.T if ".lora_" in key else t, "are swapped or transposed; A must be"),
    "ranks": (lambda key, t: torch.cat([t, t]) if "lora_A" in key else t, r"differ in rank \(4 and 2\)"),
    "no matrix": (lambda key, t: t[None] if "lora_A" in key else t, "are no two matrices"),
}


@pytest.mark.parametrize("what", FACTORS)
def test_factors_that_do_not_fit_together_are_refused_as_such(what: str, tmp_path: Path) -> None:
    change, words = FACTORS[what]
    released("flux", tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(AdapterError, match=words):
        merge("flux", tmp_path)


@pytest.mark.parametrize("name", ["flux", "qwen"])
def test_no_metadata_at_all_means_the_defaults(name: str, tmp_path: Path) -> None:
    released(name, tmp_path, policy=None)
    assert read_config(tmp_path).policy == DEFAULTS[name]


def test_what_the_metadata_names_is_taken(tmp_path: Path) -> None:
    policy = {"type": "ArcFlow", "shift": 2.5, "nfe": 4, "timestep_ratio": 0.5, "checkpointing": False,
              "conditioning_dtype": "float32"}  # fmt: skip
    released("flux", tmp_path, policy=policy)
    config = read_config(tmp_path)
    assert config.policy == Policy(2.5, 3.5, 4, 0.5, "float32") and config.policy_source == "metadata"


def test_the_configuration_comes_before_the_metadata(tmp_path: Path) -> None:
    released("qwen", tmp_path, policy={"type": "ArcFlow", "shift": 2.5})
    data = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**data, "arcflow_policy": {"shift": 1.5, "guidance": 2.0}}))
    config = read_config(tmp_path)
    assert config.policy == Policy(1.5, 2.0) and config.policy_source == "config"


def test_the_configuration_alone_still_tells_the_policy(tmp_path: Path) -> None:
    released("flux", tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    assert read_config(tmp_path).policy == DEFAULTS["flux"]


BAD_POLICIES: dict[str, tuple[object, str]] = {
    "another kind": ({"type": "GMFlow"}, "only 'ArcFlow'"),
    "no JSON": ("{", "no JSON"),
    "a list": ([1], "no JSON object"),
    "shift": ({"shift": "much"}, "not understood"),
    "negative": ({"shift": -1.0}, "must be positive"),
    "infinite": ('{"final_step_ratio": Infinity}', "must be positive"),
    "guidance": ({"guidance": -1.0}, "guidance is -1.0"),
    "nfe": ({"nfe": 0}, "nfe is 0"),
}


@pytest.mark.parametrize("what", BAD_POLICIES)
def test_a_policy_that_is_not_understood_is_refused(what: str, tmp_path: Path) -> None:
    policy, words = BAD_POLICIES[what]
    released("flux", tmp_path, policy=policy)
    with pytest.raises(AdapterError, match=words):
        read_config(tmp_path)


def test_a_damaged_file_is_found_when_its_metadata_is_read(tmp_path: Path) -> None:
    released("flux", tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"\x00" * 40)
    with pytest.raises(AdapterError, match="damaged or truncated"):
        read_config(tmp_path)


def test_an_unknown_class_is_refused(tmp_path: Path) -> None:
    released("flux", tmp_path)
    data = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**data, "_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(AdapterError, match="unknown adapter class 'FluxTransformer2DModel'"):
        read_config(tmp_path)


def test_a_key_in_both_forms_is_refused(tmp_path: Path) -> None:
    released("qwen", tmp_path, "transformer.")
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    tensors["norm_out.linear.bias"] = tensors["transformer.norm_out.linear.bias"].clone()
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match="both with and without the prefix"):
        read_adapter(tmp_path)
