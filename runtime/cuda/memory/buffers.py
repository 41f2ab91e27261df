"""The buffers of a session on the device: how large each is at most, and in which step of the work it is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from engines.schema import Manifest
from runtime.architectures.base import SEQUENCE
from runtime.cuda.memory.arena import Need, aligned
from runtime.cuda.memory.extents import BYTES, Extents, shape_of, size_of

BACKBONE, VAE = "backbone", "vae_decoder"
X = f"{BACKBONE}/hidden_states"
"""The state, float32 [batch, image_tokens, channels]; the solver changes it in place."""

STATE, TIMESTEPS, PIXELS, FOUND, ZEROS = "state", "timesteps", "pixels", "found", "zeros"
"""A preview's state; every evaluation's timestep; the images' bytes; whether a value is not finite; empty text."""

ZERO_TOKENS = 32
"""Text tokens of the buffer of zeros; longer padding is copied in pieces."""


def port_buffer(network: str, port: str) -> str:
    return f"{network}/{port}"


def timestep_stride(batch: int) -> int:
    """Bytes from one evaluation's timesteps to the next: they begin where an input of a network may."""
    return aligned(batch * 4)


def scratch_buffer(network: str) -> str:
    return f"{network}/scratch"


def needs_of(
    manifest: Manifest, extents: Extents, networks: Sequence[str], scratch: Mapping[str, int]
) -> tuple[Need, ...]:
    """The buffers of ``networks``, which run in that order: text encoders, the backbone, the VAE decoder.

    scratch: bytes that an evaluation of each needs besides. An encoder's buffers live while it runs. What the backbone
    is fed and gives also lives while the VAE runs, which generates previews between two evaluations.
    """
    latent, batch, cells = manifest.latent, manifest.limits.batch.max, _most_cells(manifest, extents)
    of_images = [place for place, name in enumerate(networks) if name in (BACKBONE, VAE)]
    needs: list[Need] = []
    for place, name in enumerate(networks):
        network = manifest.networks[name]
        last = of_images[-1] if name == BACKBONE else place
        dims = {"batch": batch, **{dim: span.most for dim, span in extents[name].items()}}
        for port in (*network.inputs, *network.outputs):
            if name == VAE:
                # Rows and columns are not at their greatest in one image, so the product is limited instead.
                values = latent.channels if port.name == "latents" else 3 * latent.vae_factor**2
                size = BYTES[port.dtype] * dims["batch"] * cells * values
            else:
                size = size_of(port, shape_of(port, dims))
            needs.append(Need(port_buffer(name, port.name), size, place, last))
        needs.append(Need(scratch_buffer(name), scratch[name], place, place))
    if of_images:
        first, last = of_images[0], of_images[-1]
        needs += [
            Need(STATE, batch * cells * latent.channels * 4, first, last),
            Need(TIMESTEPS, manifest.schedule.max_nfe * timestep_stride(batch), first, last),
            Need(PIXELS, batch * cells * latent.vae_factor**2 * 3, last, last),
            Need(FOUND, 4, last, last),
        ]
        ports = {port.name: port for port in manifest.networks[BACKBONE].inputs}
        if f"{SEQUENCE}_mask" in ports:
            text = ports[SEQUENCE]
            width = math.prod(dim for dim in text.shape[2:] if isinstance(dim, int))
            needs.append(Need(ZEROS, ZERO_TOKENS * width * BYTES[text.dtype], 0, len(networks) - 1))
    return tuple(needs)


def _most_cells(manifest: Manifest, extents: Extents) -> int:
    """Latent cells of one image at most: a plan of several resolutions takes less than its longest sides' product."""
    vae = extents[VAE]
    tokens = extents[BACKBONE]["image_tokens"].most if "image_tokens" in extents[BACKBONE] else None
    cells = vae["rows"].most * vae["columns"].most if {"rows", "columns"} <= set(vae) else None
    found = [value for value in (tokens and tokens * manifest.latent.patch**2, cells) if value]
    return min(found) if found else manifest.limits.width.max * manifest.limits.height.max
