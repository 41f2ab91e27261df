"""The networks of a FLUX bundle: how each is fed and what it gives. One such file an architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.manifest import Manifest
from runtime import layout
from runtime.backend import Array, Network
from runtime.errors import BackendError
from runtime.result import Picture
from runtime.solver import MomentumField

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


@dataclass(frozen=True)
class Conditions:
    """What the text encoders say of each picture: pooled [B, P] from CLIP, sequence [B, T, W] from T5."""

    pooled: Array
    sequence: Array

    def rows(self, index: Sequence[int]) -> Conditions:
        """The conditions of those rows, in that order."""
        return Conditions(self.pooled[list(index)], self.sequence[list(index)])


class FluxNetworks:
    """The four networks, called as the manifest describes them; every method raises BackendError."""

    def __init__(self, manifest: Manifest, networks: Mapping[str, Network]) -> None:
        self._manifest = manifest
        self._networks = networks

    def grid(self, width: int, height: int) -> Grid:
        """The tokens of a picture of that many pixels (multiples of the manifest's ``limits.multiple``)."""
        token_pixels = self._manifest.latent.patch * self._manifest.latent.vae_factor
        return Grid(height // token_pixels, width // token_pixels)

    def encode(self, clip_ids: NDArray[np.int64], t5_ids: NDArray[np.int64]) -> Conditions:
        """Conditions of any number of prompts, from their ids [prompts, max_tokens]."""
        return Conditions(self._in_batches("clip", "input_ids", clip_ids), self._in_batches("t5", "input_ids", t5_ids))

    def evaluate(self, x: Tokens, sigma: float, guidance: float, conditions: Conditions, grid: Grid) -> MomentumField:
        """One evaluation of the backbone at noise level ``sigma``, for a batch within the limits."""
        outputs = self._networks["backbone"].run(
            {
                "hidden_states": x,
                "encoder_hidden_states": conditions.sequence,
                "pooled_projections": conditions.pooled,
                "timestep": np.full(len(x), sigma, dtype=np.float32),
                "guidance": np.full(len(x), guidance, dtype=np.float32),
                "img_ids": layout.image_ids(grid.rows, grid.columns),
                "txt_ids": np.zeros((conditions.sequence.shape[1], 3), dtype=np.float32),
            }
        )
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
        return tuple(layout.to_pixels(self._in_batches("vae_decoder", "latents", z)))

    def _in_batches(self, name: str, port: str, values: Array) -> Array:
        """The first output of a network for ``values``, at most a batch at a time."""
        output = self._manifest.networks[name].outputs[0].name
        most = self._manifest.limits.batch.max
        starts = range(0, len(values), most)
        return np.concatenate([self._networks[name].run({port: values[i : i + most]})[output] for i in starts])

    def _check_field(self, field: MomentumField, x: Tokens) -> None:
        momentum = self._manifest.momentum
        head, modes, positions = x.shape[:2], momentum.modes, momentum.patch_positions
        expected = ((*head, modes, momentum.packed_channels), (*head, modes, positions), (*head, modes - 1, positions))
        actual = (field.means.shape, field.logweights.shape, field.loggammas.shape)
        if actual != expected:
            raise BackendError(f"the backbone gave outputs of shapes {actual}; its manifest makes them {expected}")
