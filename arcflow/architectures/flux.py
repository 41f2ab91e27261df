"""The FLUX family: how its backbone is built, called and adapted. One such file an architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from arcflow.architectures.conditioning import TIME_SCALE, ConditioningDtype
from arcflow.architectures.packing import pack as pack
from arcflow.architectures.packing import unpack as unpack
from arcflow.errors import BackboneError

NAME = "flux"
PIPELINE_CLASS = "FluxPipeline"
ADAPTER_CLASS = "ArcFluxTransformer2DModel"
TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
"""Folders of a pipeline that encode prompts."""
VAE_FACTOR = 8
"""Pixels along each side of a latent cell of the published base."""
EMPTY: str | None = None
"""The prompt that guidance is measured from: none, guidance is an input."""
GUIDANCE = 3.5
"""FLUX.1-dev's guidance, an input of teacher and student alike, where an adapter names none."""

LORA_TARGETS = (
    "proj_mlp",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
    "timestep_embedder.linear_1",
    "timestep_embedder.linear_2",
)
"""Suffixes of the linears that carry LoRA; the backbone's own last ``proj_out`` is the momentum head instead."""

FP8_LAYERS = (
    "transformer_blocks.*.attn.to_[qkv].weight",
    "transformer_blocks.*.attn.add_[qkv]_proj.weight",
    "transformer_blocks.*.attn.to_out.0.weight",
    "transformer_blocks.*.attn.to_add_out.weight",
    "transformer_blocks.*.ff.net.*.weight",
    "transformer_blocks.*.ff_context.net.*.weight",
    "single_transformer_blocks.*.attn.to_[qkv].weight",
    "single_transformer_blocks.*.proj_mlp.weight",
    "single_transformer_blocks.*.proj_out.weight",
)
"""The attention's and the MLPs' linears of both kinds of block: all that grows with the number of tokens."""


@dataclass(frozen=True)
class Condition:
    """What a FLUX backbone is told of the image to make.

    pooled [B, P] from CLIP; sequence [B, T, W] from T5; guidance [B], as it is (the backbone multiplies by 1000);
    img_ids [S, 3]: rows (0, row, column); txt_ids [T, 3]: zeros.
    """

    pooled: Tensor
    sequence: Tensor
    guidance: Tensor
    img_ids: Tensor
    txt_ids: Tensor

    @property
    def image_tokens(self) -> int:
        """Tokens of the image."""
        return self.img_ids.shape[0]

    def __getitem__(self, rows: Any) -> Condition:
        """The condition of some of the batch's rows."""
        pooled, sequence, guidance = self.pooled[rows], self.sequence[rows], self.guidance[rows]
        return replace(self, pooled=pooled, sequence=sequence, guidance=guidance)

    def to(self, device: torch.device) -> Condition:
        """The condition on another device."""
        parts = (self.pooled, self.sequence, self.guidance, self.img_ids, self.txt_ids)
        return Condition(*(part.to(device) for part in parts))


def build_backbone(config: Mapping[str, Any]) -> FluxTransformer2DModel:
    """An uninitialised backbone of that diffusers configuration.

    Raises BackboneError where it has no guidance input, as FLUX.1-schnell has none.
    """
    if not config.get("guidance_embeds", False):
        raise BackboneError(
            "the FLUX backbone has no guidance input (guidance_embeds is not true); use FLUX.1-dev or one like it"
        )
    model: FluxTransformer2DModel = FluxTransformer2DModel.from_config(dict(config))
    return model


def fp8_layers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Patterns (fnmatch) of the weights that FP8 bundles quantise, by state-dict name; alike in every configuration."""
    return FP8_LAYERS


def unused_linears(backbone: nn.Module) -> frozenset[str]:
    """Names of linears that match LORA_TARGETS but whose results go nowhere: none in FLUX."""
    return frozenset()


def as_trained(values: Tensor, dtype: ConditioningDtype) -> Tensor:
    """Noise levels or guidance, float32 of any shape, as a backbone saw them that was trained in ``dtype``.

    In bfloat16 diffusers' transformer rounds them, multiplies by 1000 and rounds again: a noise level of 0.7619 is
    760 / 1000, a guidance of 3.5 is 3504 / 1000.
    """
    if dtype == "float32":
        return values
    return (values.bfloat16() * TIME_SCALE).float() / TIME_SCALE


def evaluate(
    backbone: nn.Module, x: Tensor, sigma: Tensor, condition: Condition, trained: ConditioningDtype = "float32"
) -> Any:
    """One network evaluation at noise levels ``sigma`` [B]: whatever the backbone's ``proj_out`` returns.

    A velocity [B, S, C] from a teacher, a MomentumField from a student. trained: what the backbone was trained in,
    which matters where it now computes in more; one that runs in bfloat16 rounds noise level and guidance itself.
    """
    return backbone(
        hidden_states=x,
        encoder_hidden_states=condition.sequence,
        pooled_projections=condition.pooled,
        timestep=as_trained(sigma, trained),
        guidance=as_trained(condition.guidance, trained),
        img_ids=condition.img_ids,
        txt_ids=condition.txt_ids,
        return_dict=False,
    )[0]


def image_ids(rows: int, columns: int) -> Tensor:
    """Position ids [rows*columns, 3] float32 of the image tokens: (0, row, column)."""
    grid = torch.zeros(rows, columns, 3)
    grid[..., 1] = torch.arange(rows)[:, None]
    grid[..., 2] = torch.arange(columns)[None]
    return grid.reshape(rows * columns, 3)


def encoding(pipeline: Any, prompt: str, tokens: int) -> dict[str, Tensor]:
    """What a diffusers pipeline's text encoders say of one prompt: sequence [tokens, W] of T5, pooled [P] of CLIP."""
    sequence, pooled, _ = pipeline.encode_prompt(prompt, None, max_sequence_length=tokens)
    return {"sequence": sequence[0], "pooled": pooled[0]}


def condition(encodings: Sequence[Mapping[str, Tensor]], guidance: float, rows: int, columns: int) -> Condition:
    """The condition of a batch of encoded prompts for images of one size, on the encodings' device."""
    pooled, sequence = (torch.stack([each[name] for each in encodings]) for name in ("pooled", "sequence"))
    device = sequence.device
    ids = image_ids(rows, columns).to(device), torch.zeros(sequence.shape[1], 3, device=device)
    return Condition(pooled, sequence, torch.full((len(encodings),), guidance, device=device), *ids)


def encode(pipeline: Any, prompt: str, tokens: int, guidance: float, rows: int, columns: int) -> Condition:
    """The condition of one prompt of at most that many tokens, encoded by its diffusers pipeline."""
    return condition([encoding(pipeline, prompt, tokens)], guidance, rows, columns)


def guided(guidance: float) -> dict[str, Any]:
    """How the diffusers pipeline is told of the teacher's guidance: as an input."""
    return {"guidance_scale": guidance}


def vae_factor(config: Mapping[str, Any]) -> int:
    """Pixels a latent cell, of a VAE's configuration. Raises KeyError where it is another VAE's."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def decode(vae: Any, latents: Tensor) -> Tensor:
    """The images [B, 3, 8H, 8W] of latents [B, C, H, W]."""
    images: Tensor = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    return images
