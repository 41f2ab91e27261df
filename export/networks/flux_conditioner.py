"""What of a FLUX student no latent enters: its conditioner, run once an image for all of its noise levels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arcflow.architectures.flux import image_ids
from export.networks.base import Network, Sizes, as_computed, as_port, describe
from export.networks.flux_student import PARITY_SIZES, Conditions, Rope, TimeTextEmbed
from export.networks.student import merged_anew
from export.weights.files import Selected, matches
from export.weights.merge import MergedStudent

NAME = "conditioner"

_COLUMNS = 64
"""Columns of the modulation are a multiple of this, so that every noise level's rows begin where engines want them."""

WEIGHTS = (
    "time_text_embed.*",
    "context_embedder.*",
    "transformer_blocks.*.norm1.linear.*",
    "transformer_blocks.*.norm1_context.linear.*",
    "single_transformer_blocks.*.norm.linear.*",
    "norm_out.linear.*",
)
"""The conditioner's weights (fnmatch); all others are the backbone's."""

FP8_WEIGHTS = (
    "transformer_blocks.*.norm1.linear.weight",
    "transformer_blocks.*.norm1_context.linear.weight",
    "single_transformer_blocks.*.norm.linear.weight",
)
"""The modulation of all blocks: nearly all of the conditioner's bytes."""


def modulated(network: Any) -> Iterator[Any]:
    """The norms of a FLUX student that noise level, guidance and pooled text scale and shift, in a fixed order."""
    for block in network.transformer_blocks:
        yield block.norm1
        yield block.norm1_context
    for block in network.single_transformer_blocks:
        yield block.norm
    yield network.norm_out


def columns(network: Any) -> int:
    """Columns of the modulation of a student: those of all norms, filled up with zeros."""
    used = sum(int(norm.linear.out_features) for norm in modulated(network))
    return -(-used // _COLUMNS) * _COLUMNS


class Conditioner(nn.Module):
    """The conditioner in torch, of a whole student, which loses all other weights, in the type that it computes in."""

    def __init__(self, network: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        network.time_text_embed = TimeTextEmbed(network.time_text_embed)
        for name in [name for name, _ in network.named_parameters() if not matches(name, WEIGHTS)]:
            owner, _, leaf = name.rpartition(".")
            network.get_submodule(owner).register_parameter(leaf, None)
        self.rope = Rope(network.config.axes_dims_rope)
        self.network = network
        self.to(dtype)

    def forward(
        self,
        timestep: Tensor,
        guidance: Tensor,
        pooled_projections: Tensor,
        encoder_hidden_states: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pooled = as_computed(pooled_projections, self.dtype)
        conditions = Conditions(timestep, guidance, pooled)
        embedded = nn.functional.silu(self.network.time_text_embed(timestep, guidance, conditions))
        rows = torch.cat([norm.linear(embedded) for norm in modulated(self.network)], dim=1)
        empty = columns(self.network) - rows.shape[1]
        context = self.network.context_embedder(as_computed(encoder_hidden_states, self.dtype))
        return (
            as_port(nn.functional.pad(rows, (0, empty)) if empty else rows),
            as_port(context),
            torch.cat(self.rope(img_ids), dim=1),
            torch.cat(self.rope(txt_ids), dim=1),
        )


def flux_conditioner_network(_: Path, student: MergedStudent) -> Network:
    """The conditioner of a merged FLUX student.

    timestep, guidance [levels] and pooled_projections [levels, P]: a row for each noise level of each image;
    encoder_hidden_states [batch, text_tokens, W], img_ids [image_tokens, 3], txt_ids [text_tokens, 3] -> modulation
    [levels, M], context [batch, text_tokens, D], image_rotary [image_tokens, 2 R], text_rotary [text_tokens, 2 R]
    (cosines, then sines), all float32: the backbone's inputs but hidden_states.
    """
    from diffusers import FluxTransformer2DModel

    from arcflow.students import build_student

    config = describe(student.config)
    width, pooled = int(config["joint_attention_dim"]), int(config["pooled_projection_dim"])
    with torch.device("meta"):
        whole: Any = build_student(config, student.modes)
    rotary = 2 * sum(whole.config.axes_dims_rope)

    def examples(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        levels, text = sizes["levels"], sizes["text_tokens"]
        return {
            "timestep": 1.0 - torch.rand(levels, generator=generator),
            "guidance": 1.0 + 3.0 * torch.rand(levels, generator=generator),
            "pooled_projections": torch.randn(levels, pooled, generator=generator),
            "encoder_hidden_states": torch.randn(sizes["batch"], text, width, generator=generator),
            "img_ids": image_ids(sizes["rows"], sizes["image_tokens"] // sizes["rows"]),
            "txt_ids": torch.zeros(text, 3),
        }

    return Network(
        name=NAME,
        ports_in={
            "timestep": ("float32", ("levels",)),
            "guidance": ("float32", ("levels",)),
            "pooled_projections": ("float32", ("levels", pooled)),
            "encoder_hidden_states": ("float32", ("batch", "text_tokens", width)),
            "img_ids": ("float32", ("image_tokens", 3)),
            "txt_ids": ("float32", ("text_tokens", 3)),
        },
        ports_out={
            "modulation": ("float32", ("levels", columns(whole))),
            "context": ("float32", ("batch", "text_tokens", whole.context_embedder.out_features)),
            "image_rotary": ("float32", ("image_tokens", rotary)),
            "text_rotary": ("float32", ("text_tokens", rotary)),
        },
        bounds={"levels": (1, 8192), "batch": (1, 1024), "image_tokens": (1, 1 << 16), "text_tokens": (1, 4096)},
        build=lambda dtype: Conditioner(build_student(config, student.modes), dtype),
        weights=Selected(student.weights, WEIGHTS),
        reference=lambda: Conditioner(merged_anew(student, FluxTransformer2DModel), torch.float32),
        examples=examples,
        parity_sizes=[{"levels": sizes["batch"] * sizes["batch"], **sizes} for sizes in PARITY_SIZES],
        fp8_weights=FP8_WEIGHTS,
    )
