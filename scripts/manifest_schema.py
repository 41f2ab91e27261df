"""``python -m scripts.manifest_schema``: write the C++ reader of manifests from :mod:`engines.schema`.

Its structs become C++ structs, their types and ranges become readers (readers.hpp), its constants become constants,
and so does the order in which :mod:`engines.locate` prefers bundles. What the C++ side has no reader for is an error
here, not a manifest that one language reads otherwise.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import inspect as kinds
from msgspec.inspect import DictType, FloatType, IntType, ListType, LiteralType, StrType, StructType, Type, UnionType

from engines import locate, schema

FOLDER = Path(__file__).parents[1] / "runtime/native/core/bundle/manifest"

_HEADER = """\
// The structs and constants of a manifest, and the order in which bundles are preferred. Written by
// `python -m scripts.manifest_schema` from engines/schema.py and engines/locate.py.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace arcflow::core {

%(constants)s

%(functions)s
bool is_onnx_target(std::string_view name);

// A dimension: a number, or the name of a symbolic one.
using Dimension = std::variant<std::int64_t, std::string>;

%(structs)s

// The fields of a manifest.json. Throws readers::JsonError where they do not follow the schema.
Manifest read_manifest_fields(const nlohmann::ordered_json& document);

}  // namespace arcflow::core
"""
_SOURCE = """\
// The reader of a manifest's fields. Written by `python -m scripts.manifest_schema` from engines/schema.py.
#include "core/bundle/manifest/schema.hpp"

#include "core/bundle/manifest/readers.hpp"

namespace arcflow::core {
namespace {

using namespace readers;

%(patterns)s

%(readers)s

}  // namespace

%(functions)s

bool is_onnx_target(std::string_view name) { return %(onnx)s; }

Manifest read_manifest_fields(const Json& document) { return manifest(document, nullptr); }

}  // namespace arcflow::core
"""
_MEMBERS = {"template": "tmpl"}
"""Fields that are called by another name in C++, where theirs is a keyword."""
_CONSTANTS = {
    "COUNT_MAX": "std::int64_t kCountMax",
    "SCHEMA_VERSION": "std::int64_t kSchemaVersion",
    "KIND": "const char* kBundleKind",
    "MANIFEST_NAME": "const char* kManifestName",
    "SOURCE_TARGET": "const char* kSourceTarget",
    "LEVELS_A_RUN": "std::int64_t kLevelsARun",
}
_ORDERS = {
    "_TARGETS": "kTargets",
    "_CPU_PRECISIONS": "kCpuPrecisions",
    "_GPU_PRECISIONS": "kGpuPrecisions",
    "_WITHOUT_FP8": "kWithoutFp8",
}
"""Sequences of engines/locate.py that become arrays."""
_TABLES = {
    "NETWORKS": ("networks_of", "{}"),
    "TOKENIZERS": ("tokenizers_of", "{}"),
    "CAPABILITIES_OF_TARGET": ("capabilities_of_target", "{std::string(name)}"),
}
"""Tables that become functions of a name, and what those give for a name that is not in the table."""

_RUN = re.compile(r"(?:\[([^\]^\\]+)\]|([\w:]))(?:([+*?])|\{(\d+)(?:,(\d+))?\})?")
_COUNTS = {None: (1, 1), "+": (1, None), "*": (0, None), "?": (0, 1)}


def render(root: type[msgspec.Struct] = schema.Manifest) -> Mapping[str, str]:
    """The generated files by name, not formatted. Raises NotImplementedError for a type that C++ has no reader for."""
    parts = list(_parts(kinds.type_info(root)))
    structs = list({part.cls: part for part in parts if isinstance(part, StructType)}.values())
    used = {part.pattern for part in parts if isinstance(part, StrType)}
    patterns = {pattern: f"k{name}" for pattern, name in _aliases() if pattern in used}
    signatures = {key: f"std::vector<std::string> {name}(std::string_view name)" for key, (name, _) in _TABLES.items()}
    constants = [f"constexpr {name} = {_literal(getattr(schema, source))};" for source, name in _CONSTANTS.items()]
    constants.append(f"constexpr const char* kEmbedded = {_literal(locate.EMBEDDED)};")
    constants += [
        f"constexpr std::string_view {name}[] = {{{_list(getattr(locate, source))}}};"
        for source, name in _ORDERS.items()
    ]
    header = {
        "constants": "\n".join(constants),
        "functions": "\n".join(f"{signature};" for signature in signatures.values()),
        "structs": "\n\n".join(_struct(struct, patterns) for struct in structs),
    }
    source = {
        "patterns": "\n".join(f"constexpr Pattern {name}{{{runs(pattern)}}};" for pattern, name in patterns.items()),
        "readers": "\n\n".join(_function(struct, patterns) for struct in structs),
        "functions": "\n\n".join(f"{signature} {{\n{_rows(table)}}}" for table, signature in signatures.items()),
        "onnx": " || ".join(f"name == {_literal(target)}" for target in schema.ONNX_TARGETS),
    }
    return {"schema.hpp": _HEADER % header, "schema.cpp": _SOURCE % source}


def formatted(name: str, text: str) -> str:
    """``text`` as clang-format writes it for the file ``name``. Raises FileNotFoundError where there is none."""
    beside = Path(sys.executable).with_name("clang-format")
    command = [str(beside) if beside.exists() else "clang-format", f"--assume-filename={FOLDER / name}"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def _parts(node: Type) -> Iterator[Type]:
    """The types that ``node`` is made of, each after its own parts, ``node`` itself last."""
    inner: Iterable[Type] = ()
    match node:
        case StructType(fields=fields):
            inner = (field.type for field in fields)
        case ListType(item_type=item):
            inner = (item,)
        case DictType(value_type=value):
            inner = (value,)
        case UnionType(types=types):
            inner = types
    for part in inner:
        yield from _parts(part)
    yield node


def _aliases() -> Iterator[tuple[str, str]]:
    """The patterns of the schema, each with the name of the type that has it."""
    for name, value in vars(schema).items():
        for meta in get_args(value)[1:]:
            if isinstance(meta, msgspec.Meta) and meta.pattern:
                yield meta.pattern, name


def _struct(struct: StructType, patterns: Mapping[str, str]) -> str:
    fields = "".join(f"{_cxx(field.type, patterns)[0]} {_member(field)}{_initial(field)};\n" for field in struct.fields)
    return f"// {(struct.cls.__doc__ or '').splitlines()[0]}\nstruct {struct.cls.__name__} {{\n{fields}}};"


def _function(struct: StructType, patterns: Mapping[str, str]) -> str:
    """The reader of a struct."""
    name = struct.cls.__name__
    if not struct.forbid_unknown_fields:
        raise NotImplementedError(f"{name} lets unknown fields pass")
    members = (
        f'{"needed" if field.required else "defaulted"}("{field.encode_name}", &{name}::{_member(field)}, '
        f"{_cxx(field.type, patterns)[1]})"
        for field in struct.fields
    )
    return f"{name} {_snake(name)}(const Json& value, At at) {{\nreturn object(value, at, {', '.join(members)});\n}}"


def _rows(table: str) -> str:
    rows = getattr(schema, table).items()
    known = (f"if (name == {_literal(key)}) return {{{_list(values)}}};\n" for key, values in rows)
    return f"{''.join(known)}return {_TABLES[table][1]};\n"


def _cxx(node: Type, patterns: Mapping[str, str]) -> tuple[str, str]:
    """How C++ keeps a value, and the reader of readers.hpp that takes what msgspec takes for ``node``."""
    match node:
        case StrType(min_length=None, max_length=None, pattern=None):
            return "std::string", "text"
        case StrType(min_length=None, max_length=None, pattern=str(pattern)) if pattern in patterns:
            return "std::string", f"matching({patterns[pattern]})"
        case LiteralType(values=values) if all(isinstance(value, str) for value in values):
            return "std::string", f"one_of({{{_list(values)}}})"
        case IntType(gt=None, lt=None, multiple_of=None, ge=None, le=None):
            return "std::int64_t", "any_integer"
        case IntType(gt=None, lt=None, multiple_of=None, ge=int(least), le=int(most)):
            return "std::int64_t", f"integer({least}, {_bound(most)})"
        case FloatType(gt=None, ge=None, lt=None, le=None, multiple_of=None):
            return "double", "real"
        case FloatType(gt=0, ge=None, lt=None, le=None, multiple_of=None):
            return "double", "positive"
        case kinds.BoolType():
            return "bool", "boolean"
        case ListType(item_type=item, min_length=None, max_length=None):
            kind, reader = _cxx(item, patterns)
            return f"std::vector<{kind}>", f"list_of({reader})"
        case DictType(
            key_type=StrType(min_length=None, max_length=None, pattern=None), value_type=value,
            min_length=None, max_length=None,
        ):  # fmt: skip
            kind, reader = _cxx(value, patterns)
            return f"std::map<std::string, {kind}>", f"map_of({reader})"
        case StructType(cls=cls, tag=None, array_like=False):
            return cls.__name__, _snake(cls.__name__)
        case UnionType(types=(IntType(gt=None, lt=None, multiple_of=None, ge=int(least), le=int(most)), StrType())):
            return "Dimension", f"dimension({least}, {_bound(most)})"
        case UnionType(types=(StructType() as inner, kinds.NoneType())):
            kind, reader = _cxx(inner, patterns)
            return f"std::optional<{kind}>", f"nullable({reader})"
    raise NotImplementedError(f"C++ has no reader for {node}")


def _initial(field: kinds.Field) -> str:
    """The value of a field that was not read: its default, or the least there is of a number."""
    match field.type, field.default:
        case ((StrType() | LiteralType()), str(value)) if value:
            return f" = {_literal(value)}"
        case IntType(ge=least), value:
            return f" = {value if isinstance(value, int) else least or 0}"
        case FloatType(gt=least), value:
            return f" = {value if isinstance(value, float) else 0.0 if least is None else 1.0}"
        case kinds.BoolType(), _:
            return " = false"
    return ""


def runs(pattern: str) -> str:
    """The initialiser of a pattern as C++ matches it: runs of characters, one after the other.

    Raises NotImplementedError for a pattern that is more than that.
    """
    found = re.fullmatch(r"\^(\()?(.+?)(?(1)\)\?)\\Z", pattern)
    made: list[tuple[str, int, int | None]] = []
    rest = found[2] if found else ""
    while match := _RUN.match(rest):
        characters, literal, sign, least, most = match.groups()
        one = re.compile(f"[{characters or literal}]")
        counts = (int(least), int(most or least)) if least else _COUNTS[sign]
        made.append(("".join(chr(c) for c in range(128) if one.match(chr(c))), *counts))
        rest = rest[match.end() :]
    # The last alone may be of more than one length: nothing has to be tried twice.
    if not made or rest or any(least != most for _, least, most in made[:-1]):
        raise NotImplementedError(f"C++ has no matcher for the pattern {pattern}")
    empty = "true" if found and found[1] else "false"
    items = ", ".join(f"{{{_literal(text)}, {low}, {'kAny' if high is None else high}}}" for text, low, high in made)
    return f'R"({pattern})", {empty}, {{{{{items}}}}}'


def _bound(most: int) -> str:
    return {schema.COUNT_MAX: "kCountMax", (1 << 63) - 1: "INT64_MAX"}.get(most, str(most))


def _member(field: kinds.Field) -> str:
    return _MEMBERS.get(field.name, field.name)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _list(values: Sequence[Any]) -> str:
    return ", ".join(_literal(value) for value in values)


def _literal(value: int | str) -> str:
    if isinstance(value, str) and not re.fullmatch(r"[ -!#-\[\]-~]*", value):
        raise NotImplementedError(f"C++ would need escapes for {value!r}")
    return str(value) if isinstance(value, int) else f'"{value}"'


if __name__ == "__main__":
    for name, text in render().items():
        (FOLDER / name).write_text(formatted(name, text), encoding="utf-8")
