"""Optimisation profiles: resolutions, batch and text tokens become least, usual and greatest shapes of each input."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engines.schema import LEVELS_A_RUN, Latent, Limits, Network, Range, ShapeRange
from export.errors import EngineError

Profile = Mapping[str, ShapeRange]
"""Of one network, by input."""

_RESOLUTION = re.compile(r"(\d{1,6})x(\d{1,6})")
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


@dataclass(frozen=True)
class Shapes:
    """What a plan takes. resolutions: (width, height) in pixels, the usual one first; text_tokens: of the backbone."""

    resolutions: tuple[tuple[int, int], ...]
    batch: Range
    text_tokens: Range


def choose_shapes(
    limits: Limits, resolutions: str | None = None, batch: str | None = None, text_tokens: str | None = None
) -> Shapes:
    """What was asked for ("1024x1024,768x1344", "1-4", "512"), within the model's limits, which are the default.

    Raises EngineError: which value is wrong, and what is allowed.
    """
    return Shapes(
        resolutions=_resolutions(limits, resolutions),
        batch=_range("--batch", limits.batch, batch),
        text_tokens=_range("--text-tokens", limits.text_tokens, text_tokens),
    )


def choose_plan_shapes(
    limits: Limits, resolutions: str | None = None, batch: str | None = None, text_tokens: str | None = None
) -> Shapes:
    """As :func:`choose_shapes`, but one image of the usual size at a time unless told otherwise: a plan works in memory
    for the greatest shapes that it takes, used or not. Raises EngineError."""
    usual = f"{limits.width.opt}x{limits.height.opt}"
    return choose_shapes(limits, resolutions or usual, batch or str(limits.batch.opt), text_tokens)


def narrowed(limits: Limits, shapes: Shapes) -> Limits:
    """The limits of a bundle whose plans take ``shapes``."""
    first = shapes.resolutions[0]
    width, height = (
        Range(min(values), usual, max(values))
        for values, usual in zip(zip(*shapes.resolutions, strict=True), first, strict=True)
    )
    return Limits(
        batch=shapes.batch, width=width, height=height, text_tokens=shapes.text_tokens, multiple=limits.multiple
    )


def dimension_ranges(shapes: Shapes, latent: Latent) -> dict[str, Range]:
    """Ranges of the symbolic dimensions ``batch image_tokens text_tokens rows columns``.

    rows, columns: latent cells; image_tokens: the tokens of one image. Of several resolutions each dimension takes
    its own least and greatest value, so that no image costs more than the largest one that was asked for.
    """
    cells = [(height // latent.vae_factor, width // latent.vae_factor) for width, height in shapes.resolutions]
    per_token = latent.patch**2
    return {
        "batch": shapes.batch,
        "levels": Range(1, 2 * shapes.batch.opt, LEVELS_A_RUN * shapes.batch.max),
        "text_tokens": shapes.text_tokens,
        "image_tokens": _span([rows * columns // per_token for rows, columns in cells]),
        "rows": _span([rows for rows, _ in cells]),
        "columns": _span([columns for _, columns in cells]),
    }


def make_profile(name: str, network: Network, ranges: Mapping[str, Range], extra_text_tokens: int = 0) -> Profile:
    """The profile of one network from its input ports.

    extra_text_tokens: how many more text tokens this network takes than the backbone gets (a template's).
    Raises EngineError for a dimension that ``ranges`` does not know.
    """
    return {port.name: _shape_range(name, port.name, port.shape, ranges, extra_text_tokens) for port in network.inputs}


def _shape_range(
    network: str, port: str, shape: Sequence[int | str], ranges: Mapping[str, Range], extra: int
) -> ShapeRange:
    rows: list[tuple[int, int, int]] = []
    for dim in shape:
        if isinstance(dim, int):
            rows.append((dim, dim, dim))
            continue
        if dim not in ranges:
            known = ", ".join(sorted(ranges))
            raise EngineError(f"{network}: the input {port} has a dimension {dim!r}; a profile knows {known}")
        more = extra if dim == "text_tokens" else 0
        rows.append((ranges[dim].min + more, ranges[dim].opt + more, ranges[dim].max + more))
    return ShapeRange(min=[r[0] for r in rows], opt=[r[1] for r in rows], max=[r[2] for r in rows])


def _resolutions(limits: Limits, text: str | None) -> tuple[tuple[int, int], ...]:
    width, height = limits.width, limits.height
    if text is None:
        return ((width.opt, height.opt), (width.min, height.min), (width.max, height.max))
    found = []
    for part in text.split(","):
        match = _RESOLUTION.fullmatch(part.strip())
        if match is None:
            raise EngineError(f"--resolutions {text}: {part!r} is not WIDTHxHEIGHT, as in 1024x1024,768x1344")
        sizes = int(match[1]), int(match[2])
        for side, size, limit in (("width", sizes[0], width), ("height", sizes[1], height)):
            if not limit.min <= size <= limit.max or size % limits.multiple:
                raise EngineError(
                    f"--resolutions {part.strip()}: the {side} {size} is not possible; the model takes "
                    f"{limit.min} to {limit.max}, in multiples of {limits.multiple}"
                )
        found.append(sizes)
    return tuple(found)


def _range(option: str, limit: Range, text: str | None) -> Range:
    if text is None:
        return limit
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise EngineError(f"{option} {text}: give one number or a range, as in {limit.min} or {limit.min}-{limit.max}")
    low = int(match[1])
    high = int(match[2] or low)
    if not limit.min <= low <= high <= limit.max:
        raise EngineError(f"{option} {text} is not possible; the model takes {limit.min} to {limit.max}")
    return Range(low, min(max(limit.opt, low), high), high)


def _span(values: Sequence[int]) -> Range:
    """The first value is the usual one."""
    return Range(min(values), values[0], max(values))
