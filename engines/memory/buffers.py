"""The buffers of a session on the device: how large each is at most, and in which step of the work it is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from engines.errors import ManifestError
from engines.memory.arena import Need, aligned
from engines.memory.extents import BYTES, Extents, shape_of, size_of
from engines.schema import LEVELS_A_RUN, SEQUENCE, Manifest, Port

CONDITIONER, BACKBONE, VAE = "conditioner", "backbone", "vae_decoder"
X = f"{BACKBONE}/hidden_states"
"""The state, float32 [batch, image_tokens, channels]; the solver changes it in place."""

STATE, LEVELS, PIXELS, FOUND, ZEROS = "state", "levels", "pixels", "found", "zeros"
"""A preview's state; a row for each evaluation of what its noise level makes (:func:`level_port`); the images' bytes;
whether a value is not finite; empty text."""

ZERO_TOKENS = 32
"""Text tokens of the buffer of zeros; longer padding is copied in pieces."""


def port_buffer(network: str, port: str) -> str:
    return f"{network}/{port}"


def level_port(manifest: Manifest) -> str:
    """The backbone's input that another noise level changes."""
    return "modulation" if CONDITIONER in manifest.networks else "timestep"


def level_rows(manifest: Manifest) -> int:
    """Evaluations whose rows LEVELS holds at once: those of one run of the conditioner; of plain noise levels all."""
    most = manifest.schedule.max_nfe
    return min(most, LEVELS_A_RUN) if CONDITIONER in manifest.networks else most


def level_bytes(manifest: Manifest, batch: int) -> int:
    """Bytes of one evaluation's row for that many images."""
    port = find_port(manifest.networks[BACKBONE].inputs, level_port(manifest))
    return size_of(port, shape_of(port, {"batch": batch}))


def find_port(ports: Sequence[Port], name: str) -> Port:
    """Raises ManifestError where there is none of that name."""
    for port in ports:
        if port.name == name:
            return port
    raise ManifestError(f"there is no port {name!r} among {', '.join(port.name for port in ports)}")


def scratch_buffer(network: str) -> str:
    return f"{network}/scratch"


def groups_of(manifest: Manifest, low_vram: bool) -> list[list[str]]:
    """The networks that are on the device together, each group in the order in which they run.

    low_vram: each text encoder alone, the conditioner alone, then the backbone with the VAE decoder; else all at once.
    """
    encoders = [name for name in manifest.networks if name in manifest.tokenizers]
    before = [*encoders, *(name for name in (CONDITIONER,) if name in manifest.networks)]
    rest = [BACKBONE, VAE]
    return [[name] for name in before] + [rest] if low_vram else [[*before, *rest]]


def needs_of(
    manifest: Manifest, extents: Extents, networks: Sequence[str], scratch: Mapping[str, int]
) -> tuple[Need, ...]:
    """The buffers of ``networks``, which run in that order: text encoders, conditioner, the backbone, the VAE decoder.

    scratch: bytes that an evaluation of each needs besides. A network's buffers live while it runs. What the backbone
    is fed and gives also lives while the VAE runs, which generates previews between two evaluations; and what it is fed
    while the conditioner runs, which may have to between two evaluations as well.
    """
    latent, batch, cells = manifest.latent, manifest.limits.batch.max, _most_cells(manifest, extents)
    of_images = [place for place, name in enumerate(networks) if name in (BACKBONE, VAE)]
    fed = networks.index(CONDITIONER) if CONDITIONER in networks else min(of_images, default=0)
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
            first = fed if name == BACKBONE and port in network.inputs else place
            needs.append(Need(port_buffer(name, port.name), size, first, last))
        needs.append(Need(scratch_buffer(name), scratch[name], place, place))
    if of_images:
        first, last = of_images[0], of_images[-1]
        needs += [
            Need(STATE, batch * cells * latent.channels * 4, first, last),
            Need(LEVELS, level_rows(manifest) * aligned(level_bytes(manifest, batch)), fed, last),
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
