"""Qwen-Image: Qwen2.5-VL before the backbone, text of any length with a mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.schema import SEQUENCE, TEXT_PORTS
from runtime.architectures import layout
from runtime.architectures.base import Architecture, Array, Grid
from runtime.architectures.conditioning import Levels, to_bfloat16


class Qwen(Architecture):
    """The text path of Qwen2.5-VL, the backbone and the VAE decoder."""

    text_ports = TEXT_PORTS["qwen"]
    conditioned = False
    masked = True

    def bfloat16_levels(self, values: Levels) -> Levels:
        """Rounded once: the factor of 1000 comes in float32."""
        return to_bfloat16(values)

    def constants(self, tokens: Sequence[int], width: int, grid: Grid) -> dict[str, Array]:
        """The mask and the positions; guidance was distilled into the student and is not fed."""
        return {
            f"{SEQUENCE}_mask": (np.arange(width) < np.array(tokens)[:, None]).astype(np.int64),
            "img_ids": layout.centred_image_ids(grid.rows, grid.columns),
            "txt_ids": layout.text_positions(grid.rows, grid.columns, width),
        }
