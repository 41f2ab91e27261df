"""Which inputs of the backbone are made on the device by networks before it, a part of a prompt's encoding each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engines.schema import Manifest, Port
from runtime.architectures.base import Architecture
from runtime.cuda.memory.buffers import BACKBONE, VAE
from runtime.cuda.memory.encodings import PartSize
from runtime.cuda.memory.extents import BYTES, Extents
from runtime.errors import BackendError


@dataclass(frozen=True)
class Part:
    """An input of the backbone that another network makes: its port there, the network, and the network's output.

    size: tokens at most and bytes of a token; a part without a token axis is one token. sequence: whether it has one.
    """

    port: str
    network: str
    output: str
    size: PartSize
    sequence: bool


def parts_of(architecture: Architecture, extents: Extents) -> tuple[Part, ...]:
    """The parts of an encoding. Raises BackendError where the bundle's ports are not those of its architecture."""
    manifest = architecture.manifest
    _check_types(manifest)
    text = extents[BACKBONE].get("text_tokens")
    parts = []
    for name, network in architecture.text_ports.items():
        port, output = _port(manifest.networks[BACKBONE].inputs, name), manifest.networks[network].outputs[0]
        sequence = len(port.shape) == 3
        if sequence:
            width = port.shape[2]
            tokens = port.shape[1] if isinstance(port.shape[1], int) else (text.most if text else 0)
        else:
            width, tokens = math.prod(dim for dim in port.shape[1:] if isinstance(dim, int)), 1
        if not isinstance(width, int) or not tokens or output.dtype != port.dtype:
            raise BackendError(
                f"the backbone takes {name!r} as {port.dtype} {list(port.shape)}, which the {network} network's "
                f"{output.dtype} {list(output.shape)} cannot be"
            )
        parts.append(Part(name, network, output.name, PartSize(tokens, width * BYTES[port.dtype]), sequence))
    return tuple(parts)


def field_type(manifest: Manifest) -> str:
    """The type of the backbone's outputs means, logweights and loggammas. Raises BackendError where theirs differ."""
    ports = [_port(manifest.networks[BACKBONE].outputs, name) for name in ("means", "logweights", "loggammas")]
    if len({port.dtype for port in ports}) > 1:
        raise BackendError(f"the backbone's outputs are of several types: {[port.dtype for port in ports]}")
    return ports[0].dtype


def _check_types(manifest: Manifest) -> None:
    """The solver and the noise are float32; so are the images that become bytes."""
    backbone, vae = manifest.networks[BACKBONE], manifest.networks[VAE]
    for ports, name in (
        (backbone.inputs, "hidden_states"),
        (backbone.inputs, "timestep"),
        (vae.inputs, "latents"),
        (vae.outputs, "images"),
    ):
        if (found := _port(ports, name)).dtype != "float32":
            raise BackendError(f"the port {name!r} is {found.dtype}; on a GPU it must be float32")


def _port(ports: Sequence[Port], name: str) -> Port:
    for port in ports:
        if port.name == name:
            return port
    raise BackendError(f"there is no port {name!r} among {', '.join(port.name for port in ports)}")
