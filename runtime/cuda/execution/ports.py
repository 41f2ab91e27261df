"""What a bundle's ports must be before anything runs on a GPU, and what a request makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engines.memory.buffers import BACKBONE, VAE, find_port, level_port
from engines.memory.extents import Extents
from engines.schema import Manifest, Port
from runtime.errors import BackendError, RequestError

_AT_ONCE: Mapping[str, str] = {"batch": "images at once", "levels": "noise levels at once"}


def check_extents(extents: Extents, sizes: Mapping[str, Mapping[str, int]], except_for: Sequence[str] = ()) -> None:
    """Raise RequestError where a request's ``sizes`` (Pipeline.sizes) lie outside: which, and what is allowed.

    except_for: networks that are fed otherwise.
    """
    for network, spans in extents.items():
        if network in except_for:
            continue
        for dimension, span in spans.items():
            value = sizes[network].get(dimension, span.least)
            if not span.least <= value <= span.most:
                what = _AT_ONCE.get(dimension, dimension.replace("_", " "))
                raise RequestError(
                    f"the request makes {value} {what} in the {network} network, whose plan takes {span.least} to "
                    f"{span.most}: ask for something else, or build plans for it (export.build --resolutions, --batch)"
                )


def check_types(manifest: Manifest) -> None:
    """The solver, the noise and what noise levels make are float32; so are the images that become bytes.

    Raises BackendError where a port is of another type.
    """
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


def field_type(manifest: Manifest) -> str:
    """The type of the backbone's outputs means, logweights and loggammas. Raises BackendError where theirs differ."""
    ports = [find_port(manifest.networks[BACKBONE].outputs, name) for name in ("means", "logweights", "loggammas")]
    if len({port.dtype for port in ports}) > 1:
        raise BackendError(f"the backbone's outputs are of several types: {[port.dtype for port in ports]}")
    return ports[0].dtype
