"""What an architecture's backbone is fed: which inputs come from text encoders on the device, which from the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engines.manifest import Manifest, Port
from runtime.architectures import architecture_of
from runtime.architectures.base import Grid, nothing
from runtime.cuda.memory.buffers import BACKBONE, VAE
from runtime.cuda.memory.encodings import PartSize
from runtime.cuda.memory.extents import BYTES, Extents
from runtime.errors import BackendError
from runtime.hosts.onnx_network import Array

TEXT_STEP = 32
"""Text of free length is padded to a multiple of this, so that few lengths need contexts and graphs of their own."""


@dataclass(frozen=True)
class Part:
    """An input of the backbone that a text encoder makes: its port there, the encoder, and the encoder's output.

    size: tokens at most and bytes of a token; a part without a token axis is one token. sequence: whether it has one.
    """

    port: str
    encoder: str
    output: str
    size: PartSize
    sequence: bool


class Feeding:
    """How the networks of a bundle are fed. Raises BackendError where its ports are not those of its architecture."""

    def __init__(self, manifest: Manifest, extents: Extents) -> None:
        self._manifest = manifest
        self._architecture = architecture_of(manifest)
        self._text = extents[BACKBONE].get("text_tokens")
        self.masked = self._architecture.masked
        """Whether the backbone knows which text is padding; else padding is text like any other."""
        self.parts = tuple(self._part(port, encoder) for port, encoder in self._architecture.text_ports.items())
        self._check_types()

    def timesteps(self, sigmas: Sequence[float]) -> Array:
        """What the backbone is fed at those noise levels, float32."""
        return self._architecture.as_trained(sigmas)

    def text_width(self, tokens: Sequence[int]) -> int:
        """Text tokens that the backbone is fed for images whose text has so many."""
        longest = max(tokens)
        if not self.masked or self._text is None:
            return longest
        width = max(-(-longest // TEXT_STEP) * TEXT_STEP, self._text.least)
        return min(width, self._text.most)

    def host_inputs(self, tokens: Sequence[int], width: int, guidance: float, grid: Grid) -> dict[str, Array]:
        """The backbone's other inputs for a batch, but for the state and the timestep.

        tokens: text tokens of each image. width: those that it is fed.
        """
        batch = len(tokens)
        x = nothing(batch, grid.tokens, self._manifest.momentum.packed_channels)
        conditions = self._architecture.blank(tokens, width)
        inputs = self._architecture.backbone_inputs(x, 0.0, guidance, conditions, grid)
        made_here = {"hidden_states", "timestep", *(part.port for part in self.parts)}
        return {name: np.ascontiguousarray(values) for name, values in inputs.items() if name not in made_here}

    def _part(self, name: str, encoder: str) -> Part:
        port = _port(self._manifest.networks[BACKBONE].inputs, name)
        output = self._manifest.networks[encoder].outputs[0]
        widths = [dim for dim in port.shape[1:] if isinstance(dim, int)]
        sequence = len(port.shape) == 3
        if sequence:
            width = port.shape[2]
            tokens = port.shape[1] if isinstance(port.shape[1], int) else (self._text.most if self._text else 0)
        else:
            width, tokens = math.prod(widths), 1
        if not isinstance(width, int) or not tokens or output.dtype != port.dtype:
            raise BackendError(
                f"the backbone takes {name!r} as {port.dtype} {list(port.shape)}, which the {encoder} network's "
                f"{output.dtype} {list(output.shape)} cannot be"
            )
        return Part(name, encoder, output.name, PartSize(tokens, width * BYTES[port.dtype]), sequence)

    def _check_types(self) -> None:
        """The solver and the noise are float32; so are the images that become bytes."""
        backbone, vae = self._manifest.networks[BACKBONE], self._manifest.networks[VAE]
        for port in (
            _port(backbone.inputs, "hidden_states"),
            _port(backbone.inputs, "timestep"),
            _port(vae.inputs, "latents"),
            _port(vae.outputs, "images"),
        ):
            if port.dtype != "float32":
                raise BackendError(f"the port {port.name!r} is {port.dtype}; on a GPU it must be float32")


def _port(ports: Sequence[Port], name: str) -> Port:
    for port in ports:
        if port.name == name:
            return port
    raise BackendError(f"there is no port {name!r} among {', '.join(port.name for port in ports)}")


def field_ports(manifest: Manifest) -> Mapping[str, Port]:
    """The backbone's outputs: means, logweights, loggammas. Raises BackendError where their types differ."""
    ports = {name: _port(manifest.networks[BACKBONE].outputs, name) for name in ("means", "logweights", "loggammas")}
    if len({port.dtype for port in ports.values()}) > 1:
        raise BackendError(f"the backbone's outputs are of several types: {[p.dtype for p in ports.values()]}")
    return ports
