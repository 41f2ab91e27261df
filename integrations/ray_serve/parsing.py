"""From the body of a request to what shall be generated, or to the error that says why not.

The rules and sentences are those of ``arcflow-serve`` (``runtime/native/server/requests/request.cpp``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

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

_MAX_DEPTH = 16
_MAX_FIELDS = 64
_SHOWN = 64
_NAMED = 4
_KNOWN = (
    "prompt", "n", "size", "response_format", "model", "seed", "nfe", "timeout", "output_format", "output_compression",
    "stream", "partial_images", "background",
)  # fmt: skip
_IGNORED = ("user", "quality", "style", "moderation", "metadata")


class ApiError(Exception):
    """An answer that is not an image, in OpenAI's form. retry_after: seconds, 0 for no such header."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
        retry_after: int = 0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


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
    fields = _Fields(_read(body))
    _check_names(fields)
    _check_model(fields, manifest, names)
    prompt, schedule = fields.text("prompt"), manifest.schedule
    if prompt is None:
        raise _bad("there is no prompt: say in a few words what the image should show", "prompt", "missing_field")
    if "\0" in prompt:
        raise _bad("the prompt is not plain text: it holds a NUL", "prompt")
    try:
        check_request(manifest, prompt)
    except RequestError as error:
        raise _bad(str(error), "prompt") from error
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
    message = f"the model '{_shown(name)}' is not served here; this server has {', '.join((manifest.model, *names))}"
    return ApiError(404, message, code="model_not_found", param="model")


def _bad(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, code=code, param=param)


class _Fields:
    """The fields of a body that are there, and how each is read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {name: value for name, value in values.items() if value is not None}

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise _bad(f"{name} is {_describe(value)}; a string is needed", name)
        return value

    def whole(self, name: str, fallback: int, low: int, high: int) -> int:
        value = self.values.get(name, fallback)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            how = ", written without a point or an exponent" if isinstance(value, float) else ""
            raise _bad(f"{name} is {_describe(value)}; a whole number from {low} to {high} is needed{how}", name)
        return value

    def only(self, name: str, *allowed: _Word) -> _Word | None:
        text = self.text(name)
        if text is None:
            return None
        for one in allowed:
            if text == one:
                return one
        names = " or ".join(f'"{one}"' for one in allowed)
        raise _bad(f"{name} is '{_shown(text)}'; this server gives {names}", name)


def _read(body: bytes) -> dict[str, Any]:
    """The one JSON object of a body, from hostile bytes."""

    def invalid(message: str) -> ApiError:
        return _bad(message, code="invalid_json")

    def number(text: str) -> float:
        if math.isinf(value := float(text)):
            raise invalid("the body is not JSON: a number in it is too large")
        return value

    def constant(name: str) -> float:
        raise invalid(f"the body is not JSON in UTF-8: {name} is no number of JSON's")

    try:
        text = body.decode()
        fields = json.loads(text, object_pairs_hook=_Pairs, parse_float=number, parse_constant=constant)
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode()) + 1
        raise invalid(f"the body is not JSON in UTF-8: it goes wrong at byte {byte}") from error
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not JSON in UTF-8: it goes wrong at byte {error.start + 1}") from error
    except RecursionError as error:
        raise invalid(f"the body nests deeper than {_MAX_DEPTH} levels") from error
    except ValueError as error:  # Python's own limit of an integer's digits.
        raise invalid("the body is not JSON: a number in it is too large") from error
    if isinstance(fields, list) and not isinstance(fields, _Pairs):
        raise invalid("the body must be a JSON object, not an array")
    if not isinstance(fields, _Pairs):
        raise invalid("the body must be a JSON object")
    if _depth(fields) > _MAX_DEPTH:
        raise invalid(f"the body nests deeper than {_MAX_DEPTH} levels")
    names: set[str] = set()
    for name, _ in fields:
        if name in names:
            raise invalid(f"the body names a field twice: {_shown(name)}")
        names.add(name)
        if len(names) > _MAX_FIELDS:
            raise invalid(f"the body has more than {_MAX_FIELDS} fields")
    return dict(fields)


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON with every field as often as it stands there."""


def _depth(value: object) -> int:
    if isinstance(value, _Pairs):
        return 1 + max((_depth(inner) for _, inner in value), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _describe(value: object) -> str:
    if isinstance(value, str):
        return f"'{_shown(value)}'"
    if isinstance(value, list):
        return "an array or an object"
    return _shown(json.dumps(value))


def _check_names(fields: _Fields) -> None:
    strange = sorted(_shown(name) for name in fields.values if name not in _KNOWN + _IGNORED)
    if strange:
        named = ", ".join(f"'{name}'" for name in strange[:_NAMED])
        more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
        there = "there is no field" if len(strange) == 1 else "there are no fields"
        raise _bad(f"{there} {named}{more}; there are {', '.join(_KNOWN)}", strange[0], "unknown_field")


def _check_model(fields: _Fields, manifest: Manifest, names: Sequence[str]) -> None:
    name = fields.text("model")
    if name is not None and (error := model_not_found(name, manifest, names)):
        raise error


def _stream(fields: _Fields, n: int) -> tuple[bool, int]:
    """Whether it streams, and how many partial images."""
    stream = fields.values.get("stream", False)
    if not isinstance(stream, bool):
        raise _bad(f"stream is {_describe(stream)}; true or false is needed", "stream")
    partials = fields.whole("partial_images", 0, 0, MAX_PARTIALS)
    if partials and not stream:
        message = f'partial_images is {partials}, but the answer is not a stream: add "stream": true'
        raise _bad(message, "partial_images")
    if stream and n > 1:
        raise _bad(f"n is {n}; a stream has one image: ask for each with its own", "n")
    return stream, partials


def _check_response_format(fields: _Fields) -> None:
    if fields.values.get("response_format") == "url":
        raise _bad(
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
        raise _bad(
            f"size is '{_shown(size)}'; it must be WIDTHxHEIGHT in pixels, like "
            f'"{limits.width.opt}x{limits.height.opt}", or "auto"',
            "size",
        )
    return _side("width", int(width), limits.width, limits.multiple), _side(
        "height", int(height), limits.height, limits.multiple
    )


def _side(name: str, value: int, limit: Range, multiple: int) -> int:
    if not limit.min <= value <= limit.max or value % multiple:
        raise _bad(
            f"the {name} of size is {value} px; it must be a multiple of {multiple} from {limit.min} to {limit.max}",
            "size",
        )
    return value


def _timeout(value: object, most: float) -> float:
    if value is None:
        return most
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise _bad(
            f"timeout is {_describe(value)}; seconds are needed, more than 0 and at most this server's {most}",
            "timeout",
        )
    return float(value)
