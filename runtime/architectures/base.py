"""What the architectures have in common: the geometry of an image, and what the backbone is fed. Nothing runs here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.architectures import layout
from runtime.architectures.conditioning import Levels
from runtime.hosts.onnx_network import Array

if TYPE_CHECKING:
    from engines.manifest import Manifest
    from runtime.text import TokenIds

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


class Conditions(Protocol):
    """What the text encoders say of each image of a request, a row an image."""

    def rows(self, index: Sequence[int]) -> Conditions:
        """The conditions of those rows, in that order."""
        ...


Condition = TypeVar("Condition", bound=Conditions)


class Architecture(ABC, Generic[Condition]):
    """An architecture, held to one bundle's manifest."""

    text_ports: ClassVar[Mapping[str, str]]
    """Inputs of the backbone that text encoders make -> the encoder of each."""

    masked: ClassVar[bool]
    """Whether the backbone is told which text is padding; else padding is text like any other."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    @abstractmethod
    def encode(self, run: Run, tokens: Mapping[str, TokenIds]) -> Condition:
        """Conditions of any number of prompts, from the ids that each tokenizer made of them."""

    @abstractmethod
    def blank(self, tokens: Sequence[int], width: int) -> Condition:
        """Conditions of images with so many text tokens, ``width`` of them fed, whose values are left out."""

    @abstractmethod
    def backbone_inputs(
        self, x: Tokens, sigma: float, guidance: float, conditions: Condition, grid: Grid
    ) -> Mapping[str, Array]:
        """What the backbone is fed for a batch at noise level ``sigma``, which goes in as the student was trained."""

    @abstractmethod
    def bfloat16_levels(self, values: Levels) -> Levels:
        """Noise levels or guidance as a backbone saw them that was trained in bfloat16."""

    @abstractmethod
    def text_tokens(self, tokens: Mapping[str, TokenIds]) -> int:
        """Text tokens that the backbone is fed for prompts of these ids."""

    def as_trained(self, values: ArrayLike) -> Levels:
        """Noise levels or guidance as the student saw them in training: what the backbone is fed."""
        levels = np.asarray(values, dtype=np.float32)
        return levels if self._manifest.schedule.conditioning_dtype == "float32" else self.bfloat16_levels(levels)

    def sizes(self, tokens: Mapping[str, TokenIds], grid: Grid, batch: int) -> dict[str, dict[str, int]]:
        """For each network the value of every symbolic dimension, for ``batch`` images of that grid."""
        patch = self._manifest.latent.patch
        shared = {
            "batch": batch,
            "image_tokens": grid.tokens,
            "rows": grid.rows * patch,
            "columns": grid.columns * patch,
            "text_tokens": self.text_tokens(tokens),
        }
        own = {name: {"text_tokens": ids.ids.shape[1]} for name, ids in tokens.items()}
        return {name: {**shared, **own.get(name, {})} for name in self._manifest.networks}

    def grid(self, width: int, height: int) -> Grid:
        """The tokens of an image of that many pixels (multiples of the manifest's ``limits.multiple``)."""
        token_pixels = self._manifest.latent.patch * self._manifest.latent.vae_factor
        return Grid(height // token_pixels, width // token_pixels)

    def latents(self, x: Tokens, grid: Grid) -> NDArray[np.float32]:
        """Packed latents as float32 [B, C, H, W], normalised."""
        return np.array(layout.unpack(x, grid.rows, grid.columns, self._manifest.latent.patch), dtype=np.float32)

    def vae_latents(self, x: Tokens, grid: Grid) -> NDArray[np.float32]:
        """What the VAE decoder takes of packed latents: float32 [B, C, H, W], scaled and shifted back."""
        latent = self._manifest.latent
        scaling, shift = (
            np.array(values, dtype=np.float32).reshape(-1, 1, 1)
            for values in (latent.scaling_factor, latent.shift_factor)
        )
        z: NDArray[np.float32] = self.latents(x, grid) / scaling + shift
        return z


def nothing(*shape: int) -> Any:
    """An array of that shape that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)
