"""The JSON of a request's body, from hostile bytes."""

from __future__ import annotations

import json
import math
from typing import Any

from integrations.ray_serve.errors import ApiError, bad, shown

_MAX_DEPTH = 16
_MAX_FIELDS = 64
_DIGITS = 400
"""Of a number that certainly fits into no float."""


def read(body: bytes) -> dict[str, Any]:
    """The fields of the one JSON object that the body must be. Raises ApiError."""

    def invalid(message: str) -> ApiError:
        return bad(message, code="invalid_json")

    def whole(text: str) -> int | float:
        # What no 64 bits hold is a float, as in C++; and Python has a limit of digits of its own.
        value = int(text) if len(text) < _DIGITS else float(text)
        return value if -(1 << 63) <= value < 1 << 64 else float(text)

    def constant(name: str) -> float:
        raise invalid(f"the body is not JSON in UTF-8: {name} is no number of JSON's")

    try:
        text = body.decode()
        if text.lstrip(" \t\r\n").startswith("["):
            raise invalid("the body must be a JSON object, not an array")
        fields = json.loads(text, object_pairs_hook=_Pairs, parse_int=whole, parse_constant=constant)
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode()) + 1
        raise invalid(f"the body is not JSON in UTF-8: it goes wrong at byte {byte}") from error
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not JSON in UTF-8: it goes wrong at byte {error.start + 1}") from error
    except RecursionError as error:
        raise invalid(f"the body nests deeper than {_MAX_DEPTH} levels") from error
    if not isinstance(fields, _Pairs):
        raise invalid("the body must be a JSON object")
    if _depth(fields) > _MAX_DEPTH:
        raise invalid(f"the body nests deeper than {_MAX_DEPTH} levels")
    names: set[str] = set()
    for name, value in fields:
        if _too_large(value):
            message = f"a number in {shown(name)} is too large: at most 1.8e308 fits"
            raise bad(message, shown(name))
        if name in names:
            raise invalid(f"the body names a field twice: {shown(name)}")
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


def _too_large(value: object) -> bool:
    if isinstance(value, _Pairs):
        return any(_too_large(inner) for _, inner in value)
    if isinstance(value, list):
        return any(map(_too_large, value))
    return isinstance(value, float) and math.isinf(value)
