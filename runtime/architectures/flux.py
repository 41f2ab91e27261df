"""FLUX: CLIP and T5 before the backbone, guidance as its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from runtime.architectures import layout
from runtime.architectures.base import Architecture, Grid, Run, Tokens, nothing
from runtime.architectures.conditioning import Levels, scaled_bfloat16
from runtime.hosts.onnx_network import Array

if TYPE_CHECKING:
    from runtime.text import TokenIds


@dataclass(frozen=True)
class FluxConditions:
    """What the text encoders say of each image: pooled [B, P] from CLIP, sequence [B, T, W] from T5."""

    pooled: Array
    sequence: Array

    def rows(self, index: Sequence[int]) -> FluxConditions:
        """The conditions of those rows, in that order."""
        return FluxConditions(self.pooled[list(index)], self.sequence[list(index)])


class Flux(Architecture[FluxConditions]):
    """CLIP, T5, the backbone and the VAE decoder."""

    text_ports = MappingProxyType({"pooled_projections": "clip", "encoder_hidden_states": "t5"})
    masked = False

    def encode(self, run: Run, tokens: Mapping[str, TokenIds]) -> FluxConditions:
        """Conditions of any number of prompts, from their ids [prompts, max_tokens] for "clip" and "t5"."""
        return FluxConditions(
            pooled=run("clip", {"input_ids": tokens["clip"].ids}),
            sequence=run("t5", {"input_ids": tokens["t5"].ids}),
        )

    def blank(self, tokens: Sequence[int], width: int) -> FluxConditions:
        """Both encodings, each of one channel."""
        return FluxConditions(nothing(len(tokens), 1), nothing(len(tokens), width, 1))

    def bfloat16_levels(self, values: Levels) -> Levels:
        """Rounded before the factor of 1000 and after it."""
        return scaled_bfloat16(values)

    def text_tokens(self, tokens: Mapping[str, TokenIds]) -> int:
        """As many as T5's ids."""
        return int(tokens["t5"].ids.shape[1])

    def backbone_inputs(
        self, x: Tokens, sigma: float, guidance: float, conditions: FluxConditions, grid: Grid
    ) -> Mapping[str, Array]:
        """Noise level and guidance go in as the student was trained; the text has no positions."""
        return {
            "hidden_states": x,
            "encoder_hidden_states": conditions.sequence,
            "pooled_projections": conditions.pooled,
            "timestep": self.as_trained(np.full(len(x), sigma)),
            "guidance": self.as_trained(np.full(len(x), guidance)),
            "img_ids": layout.image_ids(grid.rows, grid.columns),
            "txt_ids": np.zeros((conditions.sequence.shape[1], 3), dtype=np.float32),
        }
