"""What the architectures have in common: the geometry of an image, and what the backbone is fed. Nothing runs here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engines.schema import LEVELS_A_RUN, SEQUENCE
from runtime.architectures import layout
from runtime.architectures.conditioning import Levels

if TYPE_CHECKING:
    from engines.schema import Manifest
    from runtime.text import TokenIds

Array = NDArray[Any]

Tokens = NDArray[np.float32]
"""Packed latents, float32 [B, image_tokens, channels]."""

Run = Callable[[str, Mapping[str, Array]], Array]
"""Runs a network by name on inputs of any batch and returns its first output."""


@dataclass(frozen=True)
class Grid:
    """Image tokens of an image: rows and columns."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Tokens of the whole image."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Conditions:
    """What the networks before the backbone say of each image.

    values: inputs of the backbone by port, a row an image; that of SEQUENCE [B, T, W] is zero where there is no token.
    tokens: int64 [B], text tokens of each; they come first. least: no fewer columns of text than these are fed.
    """

    values: Mapping[str, Array]
    tokens: NDArray[np.int64]
    least: int

    def rows(self, index: Sequence[int]) -> Conditions:
        """The conditions of those rows, in that order, their text no longer than the longest of them needs."""
        taken = {port: values[list(index)] for port, values in self.values.items()}
        tokens = self.tokens[list(index)]
        taken[SEQUENCE] = taken[SEQUENCE][:, : max(int(tokens.max()), self.least)]
        return Conditions(taken, tokens, self.least)


class Architecture(ABC):
    """An architecture, held to one bundle's manifest."""

    text_ports: ClassVar[Mapping[str, str]]
    """Inputs that text encoders make, of the conditioner or else of the backbone -> the encoder of each."""

    conditioned: ClassVar[bool]
    """Whether a conditioner makes what the backbone is fed besides the state, once a batch for all noise levels."""

    masked: ClassVar[bool]
    """Whether the backbone is told which text is padding; else padding is text like any other."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @abstractmethod
    def constants(self, tokens: Sequence[int], width: int, grid: Grid) -> dict[str, Array]:
        """What conditioner or backbone is fed of the sizes alone, besides state, noise level, guidance and conditions.

        tokens: text tokens of each image of the batch. width: those that it is fed.
        """

    def levels(self, sigmas: Sequence[float], guidance: float, batch: int) -> dict[str, Array]:
        """What conditioner or backbone is fed of the noise levels: float32 [levels * batch], the levels of all images
        one after the other: that of image ``b`` at level ``l`` is row ``l * batch + b``."""
        fed: dict[str, Array] = {"timestep": np.repeat(self.as_trained(sigmas), batch)}
        if self.conditioned:
            fed["guidance"] = self.as_trained(np.full(len(sigmas) * batch, guidance))
        return fed

    @abstractmethod
    def bfloat16_levels(self, values: Levels) -> Levels:
        """Noise levels or guidance as a backbone saw them that was trained in bfloat16."""

    def as_trained(self, values: ArrayLike) -> Levels:
        """Noise levels or guidance as the student saw them in training: what the backbone is fed."""
        levels = np.asarray(values, dtype=np.float32)
        return levels if self.manifest.schedule.conditioning_dtype == "float32" else self.bfloat16_levels(levels)

    def encode(self, run: Run, tokens: Mapping[str, TokenIds]) -> Conditions:
        """Conditions of any number of prompts, from the ids that each tokenizer made of them.

        Where the backbone knows what is padding, that becomes zero, and a template's head is dropped.
        """
        least = self._least
        values: dict[str, Array] = {}
        for port, name in self.text_ports.items():
            drop, ids = self.manifest.tokenizers[name].drop, tokens[name]
            missing = max(drop + least - ids.ids.shape[1], 0)
            # Padding on the right changes nothing: a token sees those before it only.
            fed = {
                "input_ids": np.pad(ids.ids, ((0, 0), (0, missing))),
                "attention_mask": np.pad(ids.mask, ((0, 0), (0, missing))),
            }
            taken = [one.name for one in self.manifest.networks[name].inputs]
            values[port] = run(name, {key: rows for key, rows in fed.items() if key in taken})
            if port == SEQUENCE:
                shown = fed["attention_mask"][:, drop:]
                shown = shown if self.masked else np.ones_like(shown)
                values[port] = np.where(shown[..., None] == 1, values[port][:, drop:], np.float32(0))
        return Conditions(values, shown.sum(axis=1), least)

    def sizes(self, tokens: Mapping[str, TokenIds], grid: Grid, batch: int, nfe: int) -> dict[str, dict[str, int]]:
        """For each network the value of every symbolic dimension, for ``batch`` images of that grid."""
        patch, encoder = self.manifest.latent.patch, self.text_ports[SEQUENCE]
        shared = {
            "batch": batch,
            "levels": batch * min(nfe, LEVELS_A_RUN),
            "image_tokens": grid.tokens,
            "rows": grid.rows * patch,
            "columns": grid.columns * patch,
            "text_tokens": max(int(tokens[encoder].ids.shape[1]) - self.manifest.tokenizers[encoder].drop, self._least),
        }
        own = {name: {"text_tokens": ids.ids.shape[1]} for name, ids in tokens.items()}
        return {name: {**shared, **own.get(name, {})} for name in self.manifest.networks}

    def grid(self, width: int, height: int) -> Grid:
        """The tokens of an image of that many pixels (multiples of the manifest's ``limits.multiple``)."""
        token_pixels = self.manifest.latent.patch * self.manifest.latent.vae_factor
        return Grid(height // token_pixels, width // token_pixels)

    def latents(self, x: Tokens, grid: Grid) -> NDArray[np.float32]:
        """Packed latents as float32 [B, C, H, W], normalised."""
        return np.array(layout.unpack(x, grid.rows, grid.columns, self.manifest.latent.patch), dtype=np.float32)

    def vae_latents(self, x: Tokens, grid: Grid) -> NDArray[np.float32]:
        """What the VAE decoder takes of packed latents: float32 [B, C, H, W], scaled and shifted back."""
        latent = self.manifest.latent
        scaling, shift = (
            np.array(values, dtype=np.float32).reshape(-1, 1, 1)
            for values in (latent.scaling_factor, latent.shift_factor)
        )
        z: NDArray[np.float32] = self.latents(x, grid) / scaling + shift
        return z

    @property
    def _least(self) -> int:
        """Text tokens that the backbone is fed at least; text of a fixed length has them anyway."""
        return self.manifest.limits.text_tokens.min if self.masked else 0
