"""The networks of a bundle on the host: arrays in, arrays out, a batch at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.architectures import architecture_of, layout
from runtime.architectures.base import Conditions, Grid, Tokens
from runtime.errors import BackendError
from runtime.hosts.onnx_network import Array, Network
from runtime.solver import MomentumField

if TYPE_CHECKING:
    from engines.manifest import Manifest
    from runtime.result import Picture
    from runtime.text import TokenIds


class Networks:
    """Called as the manifest describes them; every method raises BackendError."""

    def __init__(self, manifest: Manifest, networks: Mapping[str, Network]) -> None:
        self.architecture = architecture_of(manifest)
        self._manifest = manifest
        self._networks = networks

    def encode(self, tokens: Mapping[str, TokenIds]) -> Any:
        """The architecture's conditions of any number of prompts, from the ids that each tokenizer made of them."""
        return self.architecture.encode(self.run, tokens)

    def evaluate(self, x: Tokens, sigma: float, guidance: float, conditions: Conditions, grid: Grid) -> MomentumField:
        """One evaluation of the backbone at noise level ``sigma``, for a batch within the limits."""
        inputs = self.architecture.backbone_inputs(x, sigma, guidance, conditions, grid)
        outputs = self._networks["backbone"].run(inputs)
        field = MomentumField(outputs["means"], outputs["logweights"], outputs["loggammas"])
        self._check_field(field, x)
        return field

    def decode(self, x: Tokens, grid: Grid) -> tuple[Picture, ...]:
        """The images of packed latents."""
        return tuple(layout.to_pixels(self.run("vae_decoder", {"latents": self.architecture.vae_latents(x, grid)})))

    def run(self, name: str, inputs: Mapping[str, Array]) -> Array:
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
