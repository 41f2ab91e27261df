"""What a caller may ask for, checked against what the bundle can do before any network runs."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsIndex

from foundation import noise
from runtime.errors import RequestError

if TYPE_CHECKING:
    from engines.schema import Manifest, Range

SEED_MAX = (1 << 64) - 1
MAX_IMAGES = 1024
"""Most images of one request; they are made in batches of what the bundle takes."""

MAX_PREVIEWS = 64
MAX_PROMPT_CHARACTERS = 10_000


@dataclass(frozen=True)
class Request:
    """A checked request. Made by :func:`check_request`.

    prompts: 1 or more, not empty. seeds: one an image, 0 .. 2^64 - 1. nfe: network evaluations. num_images: images a
    prompt. width, height: pixels. previews: frames between noise and image.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    nfe: int
    num_images: int
    width: int
    height: int
    previews: int

    @property
    def total(self) -> int:
        """Images of the whole request, prompt by prompt."""
        return len(self.prompts) * self.num_images


def check_request(
    manifest: Manifest,
    prompt: str | Sequence[str],
    *,
    seed: int | Sequence[int] = 0,
    nfe: int | None = None,
    num_images: int = 1,
    width: int | None = None,
    height: int | None = None,
    previews: int = 0,
) -> Request:
    """The request with the bundle's defaults filled in. Raises RequestError: what is wrong and what is allowed."""
    limits, schedule = manifest.limits, manifest.schedule
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    if not prompts:
        raise RequestError("there is no prompt: give one prompt or more")
    for text in prompts:
        _check_prompt(text)
    count = _whole("num_images", num_images, 1, MAX_IMAGES)
    if (total := len(prompts) * count) > MAX_IMAGES:
        raise RequestError(f"the request asks for {total} images in all; at most {MAX_IMAGES} are allowed")
    return Request(
        prompts=prompts,
        seeds=_seeds(seed, total),
        nfe=_whole("nfe", schedule.nfe if nfe is None else nfe, 1, schedule.max_nfe),
        num_images=count,
        width=_pixels("width", limits.width.opt if width is None else width, limits.width, limits.multiple),
        height=_pixels("height", limits.height.opt if height is None else height, limits.height, limits.multiple),
        previews=_whole("previews", previews, 0, MAX_PREVIEWS),
    )


def _seeds(seed: object, total: int) -> tuple[int, ...]:
    if isinstance(seed, str) or not isinstance(seed, Sequence):
        return noise.image_seeds(_whole("seed", seed, 0, SEED_MAX), total)
    if len(seed) != total:
        raise RequestError(f"seed is a list of {len(seed)}; a number is needed, or one for each of the {total} images")
    return tuple(_whole("seed", one, 0, SEED_MAX) for one in seed)


def _check_prompt(text: object) -> None:
    if not isinstance(text, str):
        raise RequestError(f"a prompt is a string, not {type(text).__name__}")
    if not text.strip():
        raise RequestError("the prompt is empty: say in a few words what the image should show")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise RequestError(f"the prompt has {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError("the prompt is not plain text: it holds a NUL or a byte that is not UTF-8")


def _whole(name: str, value: object, low: int, high: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise RequestError(f"{name} is {value!r}; a whole number from {low} to {high} is needed") from error
    if not low <= number <= high:
        raise RequestError(f"{name} is {number}; it must be from {low} to {high}")
    return number


def _pixels(name: str, value: SupportsIndex, limit: Range, multiple: int) -> int:
    number = _whole(name, value, limit.min, limit.max)
    if number % multiple:
        raise RequestError(
            f"{name} is {number} px; it must be a multiple of {multiple} from {limit.min} to {limit.max}"
        )
    return number
