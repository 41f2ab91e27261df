"""From the body of a request to what shall be generated, or to the error that says why not.

The rules and sentences are those of ``arcflow-serve`` (``runtime/native/server/requests/request.cpp``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from integrations.ray_serve.body import read
from integrations.ray_serve.errors import ApiError, bad, shown
from integrations.ray_serve.files import FORMATS, Form
from runtime.errors import RequestError
from runtime.request import SEED_MAX, check_request

if TYPE_CHECKING:
    from engines.schema import Manifest, Range

MAX_IMAGES = 10
"""Images of one request, as OpenAI has it."""

MAX_PARTIALS = 8
"""Partial images of one request."""

_Word = TypeVar("_Word", bound=str)

_NAMED = 4
_KNOWN = (
    "prompt", "n", "size", "response_format", "model", "seed", "nfe", "timeout", "output_format", "output_compression",
    "stream", "partial_images", "background",
)  # fmt: skip
_IGNORED = ("user", "quality", "style", "moderation", "metadata")


@dataclass(frozen=True)
class Parsed:
    """A checked request. seed: None where the caller leaves it to the server. timeout: seconds."""

    prompt: str
    n: int
    seed: int | None
    width: int
    height: int
    nfe: int
    timeout: float
    form: Form
    stream: bool
    partial_images: int


def parse(body: bytes, manifest: Manifest, most_seconds: float, names: Sequence[str] = ()) -> Parsed:
    """Read the JSON body of POST /v1/images/generations. A field that is null counts as absent. Raises ApiError.

    most_seconds: the server's own limit of a request's time, which is also the default. names: the model's aliases.
    """
    fields = _Fields(read(body))
    _check_names(fields)
    _check_model(fields, manifest, names)
    prompt, schedule = fields.text("prompt"), manifest.schedule
    if prompt is None:
        raise bad("there is no prompt: say in a few words what the image should show", "prompt", "missing_field")
    if "\0" in prompt:
        raise bad("the prompt is not plain text: it holds a NUL", "prompt")
    try:
        check_request(manifest, prompt)
    except RequestError as error:
        raise bad(str(error), "prompt") from error
    n = fields.whole("n", 1, 1, MAX_IMAGES)
    width, height = _size(fields.text("size"), manifest)
    nfe = fields.whole("nfe", schedule.nfe, 1, schedule.max_nfe)
    stream, partials = _stream(fields, n)
    _check_response_format(fields)
    form = Form(fields.only("output_format", *FORMATS) or "png", fields.whole("output_compression", 100, 0, 100))
    fields.only("background", "auto", "opaque")
    seed = fields.whole("seed", 0, 0, SEED_MAX) if "seed" in fields.values else None
    timeout = _timeout(fields.values.get("timeout"), most_seconds)
    return Parsed(prompt, n, seed, width, height, nfe, timeout, form, stream, partials)


def model_not_found(name: str, manifest: Manifest, names: Sequence[str]) -> ApiError | None:
    """The error where the model does not have that name: it has its own, its bundle's, and ``names``."""
    if name in (manifest.model, f"{manifest.model}-{manifest.precision}-{manifest.target}", *names):
        return None
    message = f"the model '{shown(name)}' is not served here; this server has {', '.join((manifest.model, *names))}"
    return ApiError(404, message, code="model_not_found", param="model")


class _Fields:
    """The fields of a body that are there, and how each is read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {name: value for name, value in values.items() if value is not None}

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise bad(f"{name} is {_describe(value)}; a string is needed", name)
        return value

    def whole(self, name: str, fallback: int, low: int, high: int) -> int:
        value = self.values.get(name, fallback)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            how = ", written without a point or an exponent" if isinstance(value, float) else ""
            raise bad(f"{name} is {_describe(value)}; a whole number from {low} to {high} is needed{how}", name)
        return value

    def only(self, name: str, *allowed: _Word) -> _Word | None:
        text = self.text(name)
        if text is None:
            return None
        for one in allowed:
            if text == one:
                return one
        names = " or ".join(f'"{one}"' for one in allowed)
        raise bad(f"{name} is '{shown(text)}'; this server gives {names}", name)


def _describe(value: object) -> str:
    if isinstance(value, str):
        return f"'{shown(value)}'"
    if isinstance(value, list):
        return "an array or an object"
    return shown(json.dumps(value))


def _check_names(fields: _Fields) -> None:
    strange = sorted(shown(name) for name in fields.values if name not in _KNOWN + _IGNORED)
    if strange:
        named = ", ".join(f"'{name}'" for name in strange[:_NAMED])
        more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
        there = "there is no field" if len(strange) == 1 else "there are no fields"
        raise bad(f"{there} {named}{more}; there are {', '.join(_KNOWN)}", strange[0], "unknown_field")


def _check_model(fields: _Fields, manifest: Manifest, names: Sequence[str]) -> None:
    name = fields.text("model")
    if name is not None and (error := model_not_found(name, manifest, names)):
        raise error


def _stream(fields: _Fields, n: int) -> tuple[bool, int]:
    """Whether it streams, and how many partial images."""
    stream = fields.values.get("stream", False)
    if not isinstance(stream, bool):
        raise bad(f"stream is {_describe(stream)}; true or false is needed", "stream")
    partials = fields.whole("partial_images", 0, 0, MAX_PARTIALS)
    if partials and not stream:
        message = f'partial_images is {partials}, but the answer is not a stream: add "stream": true'
        raise bad(message, "partial_images")
    if stream and n > 1:
        raise bad(f"n is {n}; a stream has one image: ask for each with its own", "n")
    return stream, partials


def _check_response_format(fields: _Fields) -> None:
    if fields.values.get("response_format") == "url":
        raise bad(
            "response_format is 'url'; this server keeps no files that a link could lead to: ask for \"b64_json\", or "
            "leave the field out",
            "response_format",
        )
    fields.only("response_format", "b64_json")


def _size(size: str | None, manifest: Manifest) -> tuple[int, int]:
    limits = manifest.limits
    if size is None or size == "auto":
        return limits.width.opt, limits.height.opt
    width, cross, height = size.partition("x")
    if not cross or not all(side.isascii() and side.isdigit() and len(side) <= 5 for side in (width, height)):
        raise bad(
            f"size is '{shown(size)}'; it must be WIDTHxHEIGHT in pixels, like "
            f'"{limits.width.opt}x{limits.height.opt}", or "auto"',
            "size",
        )
    return _side("width", int(width), limits.width, limits.multiple), _side(
        "height", int(height), limits.height, limits.multiple
    )


def _side(name: str, value: int, limit: Range, multiple: int) -> int:
    if not limit.min <= value <= limit.max or value % multiple:
        raise bad(
            f"the {name} of size is {value} px; it must be a multiple of {multiple} from {limit.min} to {limit.max}",
            "size",
        )
    return value


def _timeout(value: object, most: float) -> float:
    if value is None:
        return most
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise bad(
            f"timeout is {_describe(value)}; seconds are needed, more than 0 and at most this server's {most}",
            "timeout",
        )
    return float(value)
