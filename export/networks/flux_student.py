"""The whole FLUX student: packed tokens, prompt and noise level to a momentum field.

It is what is calibrated, and what its two exported parts are held to: :mod:`export.networks.flux_conditioner` and
:mod:`export.networks.flux_backbone`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from arcflow.architectures.flux import FP8_LAYERS as FP8_LAYERS
from arcflow.architectures.flux import image_ids
from export.networks.base import Network, Sizes, as_computed, describe
from export.networks.student import as_ports, merged_anew, student_network
from export.weights.merge import MergedStudent

PARITY_SIZES = (
    {"batch": 1, "image_tokens": 16, "rows": 4, "text_tokens": 12},
    {"batch": 2, "image_tokens": 12, "rows": 2, "text_tokens": 5},
    {"batch": 3, "image_tokens": 64, "rows": 8, "text_tokens": 20},
)
"""Of the whole student and of its parts."""


class Rope(nn.Module):
    """FLUX's rotary embedding in float32 (diffusers' is float64, which engines do not take).

    Positions are small integers, so the angles differ by a few parts in 10^7.
    """

    def __init__(self, axes: Sequence[int], theta: float = 10000.0) -> None:
        super().__init__()
        self.axes = tuple(axes)
        self.theta = theta

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [tokens, axes] -> (cosines, sines), each [tokens, sum of the axes' widths] float32."""
        angles = []
        for axis, width in enumerate(self.axes):
            exponents = torch.arange(0, width, 2, dtype=torch.float32, device=ids.device) / width
            frequencies = self.theta**-exponents
            angles.append(torch.outer(ids[:, axis].float(), frequencies).repeat_interleave(2, dim=1))
        both = torch.cat(angles, dim=-1)
        return both.cos(), both.sin()


class Conditions(NamedTuple):
    """What the modulation is made of: noise level and guidance in float32, pooled text in the compute type."""

    timestep: Tensor
    guidance: Tensor
    pooled: Tensor


class TimeTextEmbed(nn.Module):
    """FLUX's embedding of time, guidance and pooled text with the first two in float32 up to their sinusoids.

    They are fed as the student saw them in training (``as_trained`` of the architecture), so the compute type must not
    round them once more, as diffusers does. Its forward hands the pooled text through untouched: they come with that.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.time_proj = original.time_proj
        self.timestep_embedder = original.timestep_embedder
        self.guidance_embedder = original.guidance_embedder
        self.text_embedder = original.text_embedder

    def forward(self, _timestep: Tensor, _guidance: Tensor, conditions: Conditions) -> Tensor:
        """conditions: noise levels and guidance [batch], pooled [batch, P] -> [batch, width] in the compute type."""
        dtype = conditions.pooled.dtype
        time = self.timestep_embedder(self.time_proj(conditions.timestep * 1000).to(dtype))
        guidance = self.guidance_embedder(self.time_proj(conditions.guidance * 1000).to(dtype))
        embedded: Tensor = time + guidance + self.text_embedder(conditions.pooled)
        return embedded


class _Student(nn.Module):
    def __init__(self, network: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.to(dtype)
        self.dtype = dtype

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        guidance: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        pooled: Any = as_computed(pooled_projections, self.dtype)
        if isinstance(self.network.time_text_embed, TimeTextEmbed):
            pooled = Conditions(timestep, guidance, pooled)
        field = self.network(
            hidden_states=as_computed(hidden_states, self.dtype),
            encoder_hidden_states=as_computed(encoder_hidden_states, self.dtype),
            pooled_projections=pooled,
            timestep=timestep,
            guidance=guidance,
            img_ids=img_ids,
            txt_ids=txt_ids,
            return_dict=False,
        )[0]
        return as_ports(field)


def flux_student_network(_: Path, student: MergedStudent) -> Network:
    """The network of a merged FLUX student.

    hidden_states [batch, image_tokens, C], encoder_hidden_states [batch, text_tokens, W], pooled_projections
    [batch, P], timestep [batch] (sigma in [0, 1]), guidance [batch], img_ids [image_tokens, 3], txt_ids
    [text_tokens, 3], all float32 -> the field (:func:`export.networks.student.student_network`).
    """
    from diffusers import FluxTransformer2DModel

    from arcflow.students import build_student

    config = describe(student.config)
    channels = int(config["in_channels"])
    width, pooled = int(config["joint_attention_dim"]), int(config["pooled_projection_dim"])

    def build(dtype: torch.dtype) -> nn.Module:
        network: Any = build_student(config, student.modes)
        network.pos_embed = Rope(network.config.axes_dims_rope)  # Published files leave it to the class's default.
        if dtype != torch.float32:
            network.time_text_embed = TimeTextEmbed(network.time_text_embed)
        return _Student(network, dtype)

    def examples(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        batch, text = sizes["batch"], sizes["text_tokens"]
        rows, columns = sizes["rows"], sizes["image_tokens"] // sizes["rows"]
        return {
            "hidden_states": torch.randn(batch, rows * columns, channels, generator=generator),
            "encoder_hidden_states": torch.randn(batch, text, width, generator=generator),
            "pooled_projections": torch.randn(batch, pooled, generator=generator),
            "timestep": 1.0 - torch.rand(batch, generator=generator),
            "guidance": 1.0 + 3.0 * torch.rand(batch, generator=generator),
            "img_ids": image_ids(rows, columns),
            "txt_ids": torch.zeros(text, 3),
        }

    return student_network(
        student,
        inputs={
            "hidden_states": ("float32", ("batch", "image_tokens", channels)),
            "encoder_hidden_states": ("float32", ("batch", "text_tokens", width)),
            "pooled_projections": ("float32", ("batch", pooled)),
            "timestep": ("float32", ("batch",)),
            "guidance": ("float32", ("batch",)),
            "img_ids": ("float32", ("image_tokens", 3)),
            "txt_ids": ("float32", ("text_tokens", 3)),
        },
        build=build,
        reference=lambda: _Student(merged_anew(student, FluxTransformer2DModel), torch.float32),
        examples=examples,
        parity_sizes=PARITY_SIZES,
        fp8_layers=FP8_LAYERS,
    )
