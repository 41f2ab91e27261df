"""Whole pipelines of both architectures, as small as these allow, as folders that diffusers loads, and their adapters.

Small in width and depth, true in structure: every component of the published repositories is there, with sharded
transformers, tokenizers in the files that the repositories carry (``vocab.json`` and ``merges.txt`` without
``tokenizer.json`` for CLIP and Qwen2), 16 latent channels, and adapters in the released format. Weights are random and
well-conditioned: every layer keeps the scale of its input, so that errors are neither hidden nor blown up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.fullsize.tokenizers import build_qwen_tokenizer
from export.architectures.qwen import TEMPLATE

MODES = 3
RANK = 4
CAPTIONS = ("a dark bag on the table", "one light boot, red", "一只黑色的包", "a sign that says hello 你好")

_LATENT_CHANNELS = 16
_PACKED_CHANNELS = 4 * _LATENT_CHANNELS
_FLUX_LORA = (
    "proj_mlp", "proj_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    "timestep_embedder.linear_1", "timestep_embedder.linear_2",
)  # fmt: skip
_QWEN_LORA = (
    "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
    "timestep_embedder.linear_1", "timestep_embedder.linear_2",
)  # fmt: skip


@dataclass(frozen=True)
class Sources:
    """Folders of the base pipeline and of the adapter. Not to be changed."""

    base: Path
    adapter: Path


def small_flux(folder: Path, seed: int = 0) -> Sources:
    """Write a FluxPipeline folder and a released-format adapter (keys without prefix, bfloat16) under ``folder``.

    2 double and 2 single blocks of width 32 with embedded guidance; CLIP (77 tokens) and T5 of width 32.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    generator = torch.Generator().manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=_PACKED_CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    clip, clip_tokenizer, t5, t5_tokenizer = _flux_text()
    networks = (transformer, clip, t5, _flux_vae())
    for network in networks:
        fill(network, generator)
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_image_seq_len=256, max_image_seq_len=4096
    )
    base, adapter = folder / "base", folder / "adapter"
    FluxPipeline(
        scheduler=scheduler,
        vae=networks[3],
        text_encoder=clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        transformer=transformer,
    ).save_pretrained(base)
    _shard(transformer, base / "transformer", "60KB")
    _shard(t5, base / "text_encoder_2", "20KB")
    _slow_tokenizer(clip_tokenizer, base / "tokenizer")
    tensors = {key: value.bfloat16() for key, value in _adapter(transformer, _FLUX_LORA, generator).items()}
    _save_adapter(tensors, "ArcFluxTransformer2DModel", transformer.config, adapter)
    return Sources(base, adapter)


def small_qwen(folder: Path, seed: int = 0) -> Sources:
    """Write a QwenImagePipeline folder and a released-format adapter (keys with ``transformer.``) under ``folder``.

    3 blocks of width 64; a Qwen2.5-VL of 2 text layers and 1 vision layer of width 64; a tokenizer in which the
    template's prefix has the 34 tokens that diffusers drops.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel

    generator = torch.Generator().manual_seed(seed)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=_PACKED_CHANNELS,
        out_channels=_LATENT_CHANNELS,
        num_layers=3,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    tokenizer = build_qwen_tokenizer(list(CAPTIONS), TEMPLATE)
    networks = (transformer, _qwen_text(tokenizer), _qwen_vae())
    for network in networks:
        fill(network, generator)
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )
    base, adapter = folder / "base", folder / "adapter"
    QwenImagePipeline(
        scheduler=scheduler, vae=networks[2], text_encoder=networks[1], tokenizer=tokenizer, transformer=transformer
    ).save_pretrained(base)
    _shard(transformer, base / "transformer", "300KB")
    _shard(networks[1], base / "text_encoder", "100KB")
    _slow_tokenizer(tokenizer, base / "tokenizer")
    tensors = {f"transformer.{key}": value for key, value in _adapter(transformer, _QWEN_LORA, generator).items()}
    _save_adapter(tensors, "ArcQwenImageTransformer2DModel", transformer.config, adapter)
    return Sources(base, adapter)


@torch.no_grad()
def fill(module: nn.Module, generator: torch.Generator) -> None:
    """Set every parameter at random: matrices scaled by 1/sqrt(inputs), gains about 1, biases about 0.1."""
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2 and parameter.numel() > max(parameter.shape):
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))
        elif name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        else:  # Gains of norms; those of diffusers' RMS norms have dimensions of size 1.
            parameter.copy_(1 + 0.1 * noise)


def _flux_text() -> tuple[nn.Module, Any, nn.Module, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    from arcflow.tiny.text import build_clip_tokenizer, build_t5_tokenizer

    captions = [caption for caption in CAPTIONS if caption.isascii()]
    clip_tokenizer, t5_tokenizer = build_clip_tokenizer(captions), build_t5_tokenizer(captions)
    clip_tokenizer.model_max_length = 77
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            projection_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=0,  # These three are not the tokenizer's, but what the published configuration says.
            eos_token_id=2,
            pad_token_id=1,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=32,
            d_kv=8,
            num_heads=4,
            d_ff=64,
            num_layers=2,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
        )
    )
    return clip, clip_tokenizer, t5, t5_tokenizer


def _flux_vae() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=_LATENT_CHANNELS,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )


def _qwen_text(tokenizer: Any) -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": len(tokenizer) + 5,  # As in the published model, there are more rows than tokens.
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [0],
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def _qwen_vae() -> nn.Module:
    from diffusers import AutoencoderKLQwenImage

    # Of the published latent statistics only the sizes are true to a random decoder, which is all that is needed.
    return AutoencoderKLQwenImage(base_dim=8, z_dim=_LATENT_CHANNELS, num_res_blocks=1)


def _adapter(transformer: nn.Module, targets: tuple[str, ...], generator: torch.Generator) -> dict[str, Tensor]:
    """The released tensors for that backbone: LoRA pairs, norm_out and the three linears of the head."""
    names = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    last = max((int(n.split(".")[1]) for n in names if n.startswith("transformer_blocks.")), default=0)
    dead = f"transformer_blocks.{last}.txt_mlp."  # Feeds nothing, so the published adapter leaves it out.
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not name.endswith(tuple("." + target for target in targets)) or name.startswith(dead):
            continue
        rows, columns = transformer.get_submodule(name).weight.shape  # type: ignore[misc]
        tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) / math.sqrt(columns)
        tensors[f"{name}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) * (0.3 / math.sqrt(RANK))
    width = transformer.get_submodule("proj_out").in_features
    head = {"proj_out_means": MODES * _PACKED_CHANNELS, "proj_out_logweights": 4 * MODES}
    for name, rows in {"norm_out.linear": 2 * width, **head, "proj_out_loggamma": 4 * (MODES - 1)}.items():
        tensors[f"{name}.weight"] = torch.randn(rows, width, generator=generator) / math.sqrt(width)
        tensors[f"{name}.bias"] = 0.1 * torch.randn(rows, generator=generator)
    tensors["proj_out_loggamma.weight"] *= 0.2
    tensors["proj_out_loggamma.bias"] += torch.linspace(math.log(0.2), math.log(4.0), MODES - 1).repeat_interleave(4)
    return tensors


def _save_adapter(tensors: Mapping[str, Tensor], class_name: str, config: Mapping[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    # The published classes register these keys, and both count the packed channels as their output.
    known = (
        "in_channels", "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads",
        "joint_attention_dim", "pooled_projection_dim", "guidance_embeds", "axes_dims_rope",
    )  # fmt: skip
    backbone = {key: config[key] for key in known if key in config}
    if class_name.startswith("ArcQwen"):
        del backbone["guidance_embeds"]
    described = {"_class_name": class_name, "_diffusers_version": "0.35.1", "num_gaussians": MODES}
    described |= {"logweights_channels": 4, "out_channels": _PACKED_CHANNELS}
    (folder / "config.json").write_text(json.dumps({**described, **backbone}, indent=2, sort_keys=True) + "\n")
    whole = {key: value.contiguous() for key, value in tensors.items()}
    metadata = {"policy_config": json.dumps({"type": "ArcFlow"})}
    save_file(whole, folder / "diffusion_pytorch_model.safetensors", metadata=metadata)


def _shard(model: Any, folder: Path, size: str) -> None:
    """Save the model again in shards of at most ``size``."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder, max_shard_size=size)
    if len(list(folder.glob("*.safetensors"))) < 2:
        raise ValueError(f"{folder} was to be sharded: make the shards smaller than {size}")


def _slow_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Replace ``tokenizer.json`` by the files of the published repositories: vocab.json, merges.txt and the rest."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    added = {token: number for token, number in special.items() if token not in model["vocab"]}
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    entry = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config["added_tokens_decoder"] = {str(number): {"content": token, **entry} for token, number in special.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer.json").unlink()
