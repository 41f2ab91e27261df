"""The backbone of a FLUX student: what each evaluation computes of the latent, given what its conditioner made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arcflow.architectures.flux import image_ids
from export.networks.base import Network, Sizes, as_computed, describe
from export.networks.flux_conditioner import WEIGHTS, flux_conditioner_network, modulated
from export.networks.flux_student import FP8_LAYERS, PARITY_SIZES, Rope
from export.networks.student import Columns, Given, as_ports, merged_anew, student_network
from export.weights.files import Selected
from export.weights.merge import MergedStudent

_SPREAD = 0.3
"""Standard deviation of the modulation in examples; the embedded model's is 0.44 for two of its prompts."""


class _Rotary(nn.Module):
    """In place of the rotary embedding: the angles come as ids."""

    def forward(self, rotary: Tensor) -> tuple[Tensor, Tensor]:
        """[tokens, 2 R] -> cosines and sines, each [tokens, R]."""
        cosines, sines = rotary.chunk(2, dim=1)
        return cosines, sines


class Backbone(nn.Module):
    """The backbone in torch, made of a whole student, whose norms then take their columns of the modulation."""

    def __init__(self, network: Any, dtype: torch.dtype) -> None:
        super().__init__()
        start = 0
        for norm in modulated(network):
            stop = start + norm.linear.out_features
            norm.silu, norm.linear, start = nn.Identity(), Columns(start, stop), stop
        network.time_text_embed, network.pos_embed = Given(2), _Rotary()  # Modulation comes as the pooled text.
        network.context_embedder = nn.Identity()
        self.network = network
        self.to(dtype)
        self.dtype = dtype

    def forward(
        self, hidden_states: Tensor, modulation: Tensor, context: Tensor, image_rotary: Tensor, text_rotary: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        field = self.network(
            hidden_states=as_computed(hidden_states, self.dtype),
            encoder_hidden_states=as_computed(context, self.dtype),
            pooled_projections=as_computed(modulation, self.dtype),
            timestep=modulation[:, 0],
            guidance=modulation[:, 0],
            img_ids=image_rotary,
            txt_ids=text_rotary,
            return_dict=False,
        )[0]
        return as_ports(field)


def flux_backbone_network(folder: Path, student: MergedStudent) -> Network:
    """The backbone of a merged FLUX student.

    hidden_states [batch, image_tokens, C] and, as the conditioner gives them, modulation [batch, M] of one noise level,
    context [batch, text_tokens, D], image_rotary [image_tokens, 2 R], text_rotary [text_tokens, 2 R], all float32 ->
    the field (:func:`export.networks.student.student_network`).
    """
    from diffusers import FluxTransformer2DModel

    from arcflow.students import build_student

    config = describe(student.config)
    channels = int(config["in_channels"])
    made = flux_conditioner_network(folder, student).ports_out
    modulation, width = (int(made[name][1][-1]) for name in ("modulation", "context"))
    with torch.device("meta"):
        whole: Any = build_student(config, student.modes)
    rope = Rope(whole.config.axes_dims_rope)

    def examples(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        batch, tokens, text = sizes["batch"], sizes["image_tokens"], sizes["text_tokens"]
        return {
            "hidden_states": torch.randn(batch, tokens, channels, generator=generator),
            "modulation": _SPREAD * torch.randn(batch, modulation, generator=generator),
            "context": torch.randn(batch, text, width, generator=generator),
            "image_rotary": torch.cat(rope(image_ids(sizes["rows"], tokens // sizes["rows"])), dim=1),
            "text_rotary": torch.cat(rope(torch.zeros(text, 3)), dim=1),
        }

    return student_network(
        student,
        inputs={
            "hidden_states": ("float32", ("batch", "image_tokens", channels)),
            **made,
            "modulation": ("float32", ("batch", modulation)),
        },
        build=lambda dtype: Backbone(build_student(config, student.modes), dtype),
        weights=Selected(student.weights, WEIGHTS, without=True),
        reference=lambda: Backbone(merged_anew(student, FluxTransformer2DModel), torch.float32),
        examples=examples,
        parity_sizes=PARITY_SIZES,
        fp8_layers=FP8_LAYERS,
    )
