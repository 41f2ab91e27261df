"""Qwen-Image: Qwen2.5-VL before the backbone, text of any length with a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.architectures import layout
from runtime.architectures.base import Architecture, Grid, Run, Tokens, nothing
from runtime.architectures.conditioning import Levels, to_bfloat16
from runtime.hosts.onnx_network import Array

if TYPE_CHECKING:
    from runtime.text import TokenIds


@dataclass(frozen=True)
class QwenConditions:
    """What the text encoder says of each image.

    sequence: float32 [B, T, W], zero where there is no token. mask: int64 [B, T], 1 for a token; tokens come first.
    least: no fewer columns than these are kept.
    """

    sequence: Array
    mask: NDArray[np.int64]
    least: int

    def rows(self, index: Sequence[int]) -> QwenConditions:
        """The conditions of those rows, in that order, no longer than the longest of them needs."""
        mask = self.mask[list(index)]
        width = max(int(mask.sum(axis=1).max()), self.least)
        return QwenConditions(self.sequence[list(index), :width], mask[:, :width], self.least)


class Qwen(Architecture[QwenConditions]):
    """The text path of Qwen2.5-VL, the backbone and the VAE decoder."""

    text_ports = MappingProxyType({"encoder_hidden_states": "text"})
    masked = True

    def encode(self, run: Run, tokens: Mapping[str, TokenIds]) -> QwenConditions:
        """Conditions of any number of prompts, from their ids for "text", the template's among them.

        The template's head is dropped from the hidden states, and what is padding becomes zero.
        """
        drop = self._manifest.tokenizers["text"].drop
        least = self._manifest.limits.text_tokens.min
        missing = max(drop + least - tokens["text"].ids.shape[1], 0)
        # Padding on the right changes nothing: a token sees those before it only.
        ids, mask = (np.pad(values, ((0, 0), (0, missing))) for values in (tokens["text"].ids, tokens["text"].mask))
        sequence = run("text", {"input_ids": ids, "attention_mask": mask})[:, drop:]
        mask = mask[:, drop:]
        return QwenConditions(np.where(mask[..., None] == 1, sequence, np.float32(0)), mask, least)

    def blank(self, tokens: Sequence[int], width: int) -> QwenConditions:
        """The sequence of one channel, and the mask itself."""
        mask = (np.arange(width) < np.array(tokens)[:, None]).astype(np.int64)
        return QwenConditions(nothing(len(tokens), width, 1), mask, 1)

    def bfloat16_levels(self, values: Levels) -> Levels:
        """Rounded once: the factor of 1000 comes in float32."""
        return to_bfloat16(values)

    def text_tokens(self, tokens: Mapping[str, TokenIds]) -> int:
        """What is left when the template's head is dropped."""
        kept = int(tokens["text"].ids.shape[1]) - self._manifest.tokenizers["text"].drop
        return max(kept, self._manifest.limits.text_tokens.min)

    def backbone_inputs(
        self, x: Tokens, sigma: float, guidance: float, conditions: QwenConditions, grid: Grid
    ) -> Mapping[str, Array]:
        """The noise level goes in as the student was trained; guidance was distilled into it and is not fed."""
        return {
            "hidden_states": x,
            "encoder_hidden_states": conditions.sequence,
            "encoder_hidden_states_mask": conditions.mask,
            "timestep": self.as_trained(np.full(len(x), sigma)),
            "img_ids": layout.centred_image_ids(grid.rows, grid.columns),
            "txt_ids": layout.text_positions(grid.rows, grid.columns, conditions.mask.shape[1]),
        }
