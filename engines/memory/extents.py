"""How large a network's inputs and outputs may be: of plans by their profiles, of ONNX by the limits of the bundle."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engines.errors import ManifestError
from engines.schema import LEVELS_A_RUN, Manifest, Network, Port, ShapeRange

BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}
"""Bytes of one value, by the manifest's types."""

_MULTIPLE = re.compile(r"(?:(\d+)\*)?(\w+)")


@dataclass(frozen=True)
class Span:
    """The least and greatest value of a dimension."""

    least: int
    most: int

    def clip(self, value: int) -> int:
        """The allowed value that is nearest to ``value``."""
        return min(max(value, self.least), self.most)


Extents = Mapping[str, Mapping[str, Span]]
"""By network and symbolic dimension."""


def extents_of(manifest: Manifest) -> dict[str, dict[str, Span]]:
    """What the symbolic dimensions of each network's inputs may be. Raises ManifestError for a damaged profile."""
    if manifest.engine is not None:
        return extents_of_profiles(manifest.networks, manifest.engine.profiles)
    limits, latent = manifest.limits, manifest.latent
    rows, columns = (
        Span(side.min // latent.vae_factor, side.max // latent.vae_factor) for side in (limits.height, limits.width)
    )
    per_token = latent.patch**2
    shared = {
        "batch": Span(limits.batch.min, limits.batch.max),
        "levels": Span(1, LEVELS_A_RUN * limits.batch.max),
        "rows": rows,
        "columns": columns,
        "image_tokens": Span(rows.least * columns.least // per_token, rows.most * columns.most // per_token),
    }
    text = Span(limits.text_tokens.min, limits.text_tokens.max)
    # An encoder also takes text tokens that the backbone does not get.
    own = {name: Span(1, tokenizer.max_tokens) for name, tokenizer in manifest.tokenizers.items()}
    return {name: {**shared, "text_tokens": own.get(name, text)} for name in manifest.networks}


def extents_of_profiles(
    networks: Mapping[str, Network], profiles: Mapping[str, Mapping[str, ShapeRange]]
) -> dict[str, dict[str, Span]]:
    """The same of plans. profiles: by network and input. Raises ManifestError where one does not fit its network."""
    return {name: _of_profile(name, network, profiles.get(name, {})) for name, network in networks.items()}


def shape_of(port: Port, dims: Mapping[str, int]) -> tuple[int, ...]:
    """A port's shape, its symbolic dimensions replaced; "4*rows" is four times "rows". Raises ManifestError."""

    def value(dim: int | str) -> int:
        if isinstance(dim, int):
            return dim
        match = _MULTIPLE.fullmatch(dim)
        if match is None or match[2] not in dims:
            raise ManifestError(f"the port {port.name!r} has a dimension {dim!r}; known are {', '.join(sorted(dims))}")
        return int(match[1] or 1) * dims[match[2]]

    return tuple(map(value, port.shape))


def size_of(port: Port, shape: Sequence[int]) -> int:
    return math.prod(shape) * BYTES[port.dtype]


def _of_profile(name: str, network: Network, profile: Mapping[str, ShapeRange]) -> dict[str, Span]:
    spans: dict[str, Span] = {}
    for port in network.inputs:
        shapes = profile.get(port.name)
        if shapes is None or not len(shapes.min) == len(shapes.max) == len(port.shape):
            raise ManifestError(
                f"the manifest's profile of {name} does not fit its input {port.name!r}: build it again"
            )
        for dim, low, high in zip(port.shape, shapes.min, shapes.max, strict=True):
            if isinstance(dim, str):
                spans[dim] = Span(low, high)
    return spans
