"""What one network makes on the device and another is fed: the parts that are cached in between, and their sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engines.errors import ManifestError
from engines.memory.arena import aligned
from engines.memory.buffers import BACKBONE, CONDITIONER, find_port, level_rows
from engines.memory.extents import BYTES, Extents
from engines.schema import SEQUENCE, TEXT_PORTS, Manifest

MODULATION, CONTEXT = "modulation", "context"
IMAGE_ROTARY, TEXT_ROTARY = "image_rotary", "text_rotary"
"""What the conditioner makes: of a prompt and a schedule, a row a noise level; of a prompt; of an image's size; of the
number of text tokens."""

PROMPTS = 16
"""Prompts whose encodings are cached, unless a batch or a caller wants more."""

_SIZES = 4
"""Sizes of images whose rotary angles are cached; there are as many of text."""


@dataclass(frozen=True)
class PartSize:
    """A kind of value that is cached (what one text encoder says): tokens at most, and the bytes of a token.

    most: how many values of it are cached.
    """

    tokens: int
    token_bytes: int
    most: int

    @property
    def size(self) -> int:
        return self.tokens * self.token_bytes

    @property
    def held(self) -> int:
        """Bytes of all values, each in a place of its own."""
        return aligned(self.size) * self.most


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


def parts_of(manifest: Manifest, extents: Extents, prompts: int = PROMPTS) -> tuple[Part, ...]:
    """The parts, in the order in which they are made: of text encoders, and of the conditioner where there is one.

    prompts: whose parts are cached at least; a batch's always are. Raises ManifestError where the bundle's ports are
    not those of its architecture.
    """
    batch, conditioned = manifest.limits.batch.max, CONDITIONER in manifest.networks
    prompts = max(prompts, batch)
    most = {
        # Where there is a context, that is what lasts.
        SEQUENCE: batch if conditioned else prompts,
        MODULATION: max(prompts * manifest.schedule.nfe, batch * level_rows(manifest)),
        IMAGE_ROTARY: _SIZES,
        TEXT_ROTARY: _SIZES,
    }
    taker = CONDITIONER if conditioned else BACKBONE
    made = [
        (name, network, manifest.networks[network].outputs[0], taker)
        for name, network in TEXT_PORTS[manifest.architecture].items()
    ]
    if conditioned:
        outputs = manifest.networks[CONDITIONER].outputs
        names = (CONTEXT, IMAGE_ROTARY, TEXT_ROTARY, MODULATION)
        made += [(name, CONDITIONER, find_port(outputs, name), BACKBONE) for name in names]
    parts = []
    for name, network, output, taker in made:
        port = find_port(manifest.networks[taker].inputs, name)
        own = [dim for dim in port.shape if dim not in ("batch", "levels")]
        width, tokens = own[-1], [_most(extents, taker, dim) for dim in own[:-1]]
        if not isinstance(width, int) or not all(tokens) or (output.dtype, output.shape[-1]) != (port.dtype, width):
            raise ManifestError(
                f"the {taker} takes {name!r} as {port.dtype} {list(port.shape)}, which the {network} network's "
                f"{output.dtype} {list(output.shape)} cannot be"
            )
        size = PartSize(math.prod(tokens), width * BYTES[port.dtype], most.get(name, prompts))
        parts.append(Part(name, network, output.name, size, bool(tokens)))
    return tuple(parts)


def _most(extents: Extents, network: str, dim: int | str) -> int:
    if isinstance(dim, int):
        return dim
    span = extents[network].get(dim)
    return span.most if span else 0
