"""The buffers of a session on the device: how large each is at most, and in which step of the work it is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from engines.schema import Manifest, Port
from runtime.cuda.memory.arena import Need
from runtime.cuda.memory.extents import BYTES, Extents, shape_of, size_of

BACKBONE, VAE = "backbone", "vae_decoder"
X = f"{BACKBONE}/hidden_states"
"""The state, float32 [batch, image_tokens, channels]; the solver changes it in place."""

STATE, TIMESTEPS, PIXELS, FOUND, ZEROS = "state", "timesteps", "pixels", "found", "zeros"
"""A preview's state; every evaluation's timestep; the images' bytes; whether a value is not finite; empty text."""

TIMESTEP_STRIDE = 256
"""Bytes from one evaluation's timesteps to the next: they begin where an input of a network may."""

ZERO_TOKENS = 32
"""Text tokens of the buffer of zeros; longer padding is copied in pieces."""


def port_buffer(network: str, port: str) -> str:
    """The name of the buffer that holds a port."""
    return f"{network}/{port}"


def scratch_buffer(network: str) -> str:
    """The name of a network's scratch memory."""
    return f"{network}/scratch"


def needs_of(
    manifest: Manifest, extents: Extents, networks: Sequence[str], scratch: Mapping[str, int]
) -> tuple[Need, ...]:
    """The buffers of ``networks``, which run in that order: text encoders, the backbone, the VAE decoder.

    scratch: bytes that an evaluation of each needs besides. An encoder's buffers live while it runs. What the backbone
    is fed and gives also lives while the VAE runs, which generates previews between two evaluations.
    """
    needs: list[Need] = []
    painting = [place for place, name in enumerate(networks) if name in (BACKBONE, VAE)]
    for place, name in enumerate(networks):
        network = manifest.networks[name]
        last = painting[-1] if name == BACKBONE else place
        dims = _greatest(manifest, extents, name)
        needs += [
            Need(port_buffer(name, port.name), _port_size(manifest, name, port, dims), place, last)
            for port in (*network.inputs, *network.outputs)
        ]
        needs.append(Need(scratch_buffer(name), scratch[name], place, place))
    if painting:
        needs += _painting_needs(manifest, extents, painting[0], painting[-1])
        if any(port.name == "encoder_hidden_states_mask" for port in manifest.networks[BACKBONE].inputs):
            text = next(port for port in manifest.networks[BACKBONE].inputs if port.name == "encoder_hidden_states")
            width = math.prod(dim for dim in text.shape[2:] if isinstance(dim, int))
            needs.append(Need(ZEROS, ZERO_TOKENS * width * BYTES[text.dtype], 0, len(networks) - 1))
    return tuple(needs)


def most_cells(manifest: Manifest, extents: Extents) -> int:
    """Latent cells of one image at most: a plan of several resolutions takes less than its longest sides' product."""
    vae = extents[VAE]
    tokens = extents[BACKBONE]["image_tokens"].most if "image_tokens" in extents[BACKBONE] else None
    cells = vae["rows"].most * vae["columns"].most if {"rows", "columns"} <= set(vae) else None
    found = [value for value in (tokens and tokens * manifest.latent.patch**2, cells) if value]
    return min(found) if found else manifest.limits.width.max * manifest.limits.height.max


def _painting_needs(manifest: Manifest, extents: Extents, first: int, last: int) -> list[Need]:
    batch = manifest.limits.batch.max
    latent, cells = manifest.latent, most_cells(manifest, extents)
    pixels = cells * latent.vae_factor**2
    timesteps = max(TIMESTEP_STRIDE, batch * 4)
    return [
        Need(STATE, batch * cells * latent.channels * 4, first, last),
        Need(TIMESTEPS, manifest.schedule.max_nfe * -(-timesteps // TIMESTEP_STRIDE) * TIMESTEP_STRIDE, first, last),
        Need(PIXELS, batch * pixels * 3, last, last),
        Need(FOUND, 4, last, last),
    ]


def _port_size(manifest: Manifest, network: str, port: Port, dims: Mapping[str, int]) -> int:
    if network != VAE:
        return size_of(port, shape_of(port, dims))
    # Rows and columns are not at their greatest in one image, so the product is limited instead.
    cells, values = dims["cells"], BYTES[port.dtype] * dims["batch"]
    if port.name == "latents":
        return values * cells * manifest.latent.channels
    return values * cells * manifest.latent.vae_factor**2 * 3


def _greatest(manifest: Manifest, extents: Extents, name: str) -> dict[str, int]:
    dims = {dim: span.most for dim, span in extents[name].items()}
    dims.setdefault("batch", manifest.limits.batch.max)
    return {**dims, "cells": most_cells(manifest, extents)} if name == VAE else dims
