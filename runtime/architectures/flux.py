"""FLUX: CLIP and T5, then a conditioner that noise levels and guidance enter; text without positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.schema import TEXT_PORTS
from runtime.architectures import layout
from runtime.architectures.base import Architecture, Array, Grid
from runtime.architectures.conditioning import Levels, scaled_bfloat16


class Flux(Architecture):
    """CLIP, T5, the conditioner, the backbone and the VAE decoder."""

    text_ports = TEXT_PORTS["flux"]
    conditioned = True
    masked = False

    def bfloat16_levels(self, values: Levels) -> Levels:
        """Rounded before the factor of 1000 and after it."""
        return scaled_bfloat16(values)

    def constants(self, tokens: Sequence[int], width: int, grid: Grid) -> dict[str, Array]:
        """The positions."""
        return {
            "img_ids": layout.image_ids(grid.rows, grid.columns),
            "txt_ids": np.zeros((width, 3), dtype=np.float32),
        }
