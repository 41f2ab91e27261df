"""What the networks of every architecture have in common: one file an architecture says what is its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engines.manifest import Manifest
from runtime import layout
from runtime.backend import Array, Network
from runtime.conditioning import Levels
from runtime.errors import BackendError
from runtime.result import Picture
from runtime.solver import MomentumField
from runtime.text import TokenIds

Tokens = NDArray[np.float32]
"""Packed latents, float32 [B, image_tokens, channels]."""


@dataclass(frozen=True)
class Grid:
    """Image tokens of a picture: rows and columns."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Tokens of the whole picture."""
        return self.rows * self.columns


class Conditions(Protocol):
    """What the text encoders say of each picture of a request, a row a picture."""

    def rows(self, index: Sequence[int]) -> Conditions:
        """The conditions of those rows, in that order."""
        ...


Condition = TypeVar("Condition", bound=Conditions)


class ArchitectureNetworks(ABC, Generic[Condition]):
    """The networks of a bundle, called as its manifest describes them; every method raises BackendError."""

    def __init__(self, manifest: Manifest, networks: Mapping[str, Network]) -> None:
        self._manifest = manifest
        self._networks = networks

    @abstractmethod
    def encode(self, tokens: Mapping[str, TokenIds]) -> Condition:
        """Conditions of any number of prompts, from the ids that each tokenizer made of them."""

    @abstractmethod
    def backbone_inputs(
        self, x: Tokens, sigma: float, guidance: float, conditions: Condition, grid: Grid
    ) -> Mapping[str, Array]:
        """What the backbone is fed for a batch at noise level ``sigma``, which goes in as the student was trained."""

    @abstractmethod
    def bfloat16_levels(self, values: Levels) -> Levels:
        """Noise levels or guidance as a backbone saw them that was trained in bfloat16."""

    def as_trained(self, values: ArrayLike) -> Levels:
        """Noise levels or guidance as the student saw them in training: what the backbone is fed."""
        levels = np.asarray(values, dtype=np.float32)
        return levels if self._manifest.schedule.conditioning_dtype == "float32" else self.bfloat16_levels(levels)

    @abstractmethod
    def text_tokens(self, tokens: Mapping[str, TokenIds]) -> int:
        """Text tokens that the backbone is fed for prompts of these ids."""

    def sizes(self, tokens: Mapping[str, TokenIds], grid: Grid, batch: int) -> dict[str, dict[str, int]]:
        """For each network the value of every symbolic dimension, for ``batch`` pictures of that grid."""
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
        """The tokens of a picture of that many pixels (multiples of the manifest's ``limits.multiple``)."""
        token_pixels = self._manifest.latent.patch * self._manifest.latent.vae_factor
        return Grid(height // token_pixels, width // token_pixels)

    def evaluate(self, x: Tokens, sigma: float, guidance: float, conditions: Condition, grid: Grid) -> MomentumField:
        """One evaluation of the backbone at noise level ``sigma``, for a batch within the limits."""
        outputs = self._networks["backbone"].run(self.backbone_inputs(x, sigma, guidance, conditions, grid))
        field = MomentumField(outputs["means"], outputs["logweights"], outputs["loggammas"])
        self._check_field(field, x)
        return field

    def latents(self, x: Tokens, grid: Grid) -> NDArray[np.float32]:
        """Packed latents as float32 [B, C, H, W], normalised."""
        return np.array(layout.unpack(x, grid.rows, grid.columns, self._manifest.latent.patch), dtype=np.float32)

    def decode(self, x: Tokens, grid: Grid) -> tuple[Picture, ...]:
        """The pictures of packed latents."""
        latent = self._manifest.latent
        scaling, shift = (
            np.array(values, dtype=np.float32).reshape(-1, 1, 1)
            for values in (latent.scaling_factor, latent.shift_factor)
        )
        z = self.latents(x, grid) / scaling + shift
        return tuple(layout.to_pixels(self.in_batches("vae_decoder", {"latents": z})))

    def in_batches(self, name: str, inputs: Mapping[str, Array]) -> Array:
        """The first output of a network for ``inputs``, at most a batch at a time."""
        output = self._manifest.networks[name].outputs[0].name
        most = self._manifest.limits.batch.max
        count = len(next(iter(inputs.values())))
        results = [
            self._networks[name].run({port: values[i : i + most] for port, values in inputs.items()})[output]
            for i in range(0, count, most)
        ]
        return np.concatenate(results)

    def _check_field(self, field: MomentumField, x: Tokens) -> None:
        momentum = self._manifest.momentum
        head, modes, positions = x.shape[:2], momentum.modes, momentum.patch_positions
        expected = ((*head, modes, momentum.packed_channels), (*head, modes, positions), (*head, modes - 1, positions))
        actual = (field.means.shape, field.logweights.shape, field.loggammas.shape)
        if actual != expected:
            raise BackendError(f"the backbone gave outputs of shapes {actual}; its manifest makes them {expected}")


def networks_of(manifest: Manifest, networks: Mapping[str, Network]) -> ArchitectureNetworks[Any]:
    """The networks of a bundle, called as its architecture wants it."""
    match manifest.architecture:
        case "flux":
            from runtime.flux import FluxNetworks

            return FluxNetworks(manifest, networks)
        case "qwen":
            from runtime.qwen import QwenNetworks

            return QwenNetworks(manifest, networks)
