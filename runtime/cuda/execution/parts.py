"""What one network makes on the device and another is fed: the parts that are cached in between, and their sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engines.schema import Manifest, Port
from runtime.architectures.base import SEQUENCE, Architecture
from runtime.cuda.memory.buffers import BACKBONE, CONDITIONER, VAE, find_port, level_port, level_rows
from runtime.cuda.memory.encodings import PartSize
from runtime.cuda.memory.extents import BYTES, Extents
from runtime.errors import BackendError

MODULATION, CONTEXT = "modulation", "context"
IMAGE_ROTARY, TEXT_ROTARY = "image_rotary", "text_rotary"
"""What the conditioner makes: of a prompt and a schedule, a row a noise level; of a prompt; of an image's size; of the
number of text tokens."""

_SIZES = 4
"""Sizes of images whose rotary angles are cached; there are as many of text."""


@dataclass(frozen=True)
class Part:
    """An input that another network makes: its port there, the network, and the network's output.

    size: tokens at most and bytes of a token; a part without a token axis is one token. sequence: whether it has one.
    """

    port: str
    network: str
    output: str
    size: PartSize
    sequence: bool


def parts_of(architecture: Architecture, extents: Extents, prompts: int) -> tuple[Part, ...]:
    """The parts, in the order in which they are made: of text encoders, and of the conditioner where there is one.

    prompts: whose parts are cached at least; a batch's always are. Raises BackendError where the bundle's ports are not
    those of its architecture.
    """
    manifest = architecture.manifest
    _check_types(manifest)
    batch = manifest.limits.batch.max
    prompts = max(prompts, batch)
    most = {
        # Where there is a context, that is what lasts.
        SEQUENCE: batch if architecture.conditioned else prompts,
        MODULATION: max(prompts * manifest.schedule.nfe, batch * level_rows(manifest)),
        IMAGE_ROTARY: _SIZES,
        TEXT_ROTARY: _SIZES,
    }
    taker = CONDITIONER if architecture.conditioned else BACKBONE
    made = [
        (name, network, manifest.networks[network].outputs[0], taker)
        for name, network in architecture.text_ports.items()
    ]
    if architecture.conditioned:
        outputs = manifest.networks[CONDITIONER].outputs
        names = (CONTEXT, IMAGE_ROTARY, TEXT_ROTARY, MODULATION)
        made += [(name, CONDITIONER, find_port(outputs, name), BACKBONE) for name in names]
    parts = []
    for name, network, output, taker in made:
        port = find_port(manifest.networks[taker].inputs, name)
        own = [dim for dim in port.shape if dim not in ("batch", "levels")]
        width, tokens = own[-1], [_most(extents, taker, dim) for dim in own[:-1]]
        if not isinstance(width, int) or not all(tokens) or (output.dtype, output.shape[-1]) != (port.dtype, width):
            raise BackendError(
                f"the {taker} takes {name!r} as {port.dtype} {list(port.shape)}, which the {network} network's "
                f"{output.dtype} {list(output.shape)} cannot be"
            )
        size = PartSize(math.prod(tokens), width * BYTES[port.dtype], most.get(name, prompts))
        parts.append(Part(name, network, output.name, size, bool(tokens)))
    return tuple(parts)


def field_type(manifest: Manifest) -> str:
    """The type of the backbone's outputs means, logweights and loggammas. Raises BackendError where theirs differ."""
    ports = [find_port(manifest.networks[BACKBONE].outputs, name) for name in ("means", "logweights", "loggammas")]
    if len({port.dtype for port in ports}) > 1:
        raise BackendError(f"the backbone's outputs are of several types: {[port.dtype for port in ports]}")
    return ports[0].dtype


def _most(extents: Extents, network: str, dim: int | str) -> int:
    if isinstance(dim, int):
        return dim
    span = extents[network].get(dim)
    return span.most if span else 0


def _check_types(manifest: Manifest) -> None:
    """The solver, the noise and what noise levels make are float32; so are the images that become bytes."""
    backbone, vae = manifest.networks[BACKBONE], manifest.networks[VAE]
    checked: list[tuple[Sequence[Port], str]] = [
        (backbone.inputs, "hidden_states"),
        (backbone.inputs, level_port(manifest)),
        (vae.inputs, "latents"),
        (vae.outputs, "images"),
    ]
    for ports, name in checked:
        if (found := find_port(ports, name)).dtype != "float32":
            raise BackendError(f"the port {name!r} is {found.dtype}; on a GPU it must be float32")
