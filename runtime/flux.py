"""The networks of a FLUX bundle: how each is fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runtime import layout
from runtime.architecture import ArchitectureNetworks, Grid, Tokens
from runtime.backend import Array
from runtime.conditioning import Levels, scaled_bfloat16
from runtime.text import TokenIds


@dataclass(frozen=True)
class FluxConditions:
    """What the text encoders say of each picture: pooled [B, P] from CLIP, sequence [B, T, W] from T5."""

    pooled: Array
    sequence: Array

    def rows(self, index: Sequence[int]) -> FluxConditions:
        """The conditions of those rows, in that order."""
        return FluxConditions(self.pooled[list(index)], self.sequence[list(index)])


class FluxNetworks(ArchitectureNetworks[FluxConditions]):
    """CLIP, T5, the backbone and the VAE decoder."""

    def encode(self, tokens: Mapping[str, TokenIds]) -> FluxConditions:
        """Conditions of any number of prompts, from their ids [prompts, max_tokens] for "clip" and "t5"."""
        return FluxConditions(
            pooled=self.in_batches("clip", {"input_ids": tokens["clip"].ids}),
            sequence=self.in_batches("t5", {"input_ids": tokens["t5"].ids}),
        )

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
