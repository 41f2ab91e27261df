"""The C++ reader of manifests is the one that :mod:`engines.schema` makes."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest

from scripts.manifest_schema import FOLDER, formatted, render, runs


@pytest.mark.parametrize("name", ["schema.hpp", "schema.cpp"])
def test_what_is_committed_is_what_the_schema_makes(name: str) -> None:
    committed, made = (FOLDER / name).read_text(encoding="utf-8"), render()[name]
    try:
        made = formatted(name, made)
    except FileNotFoundError:  # Without clang-format, less the layout.
        committed, made = "".join(committed.split()), "".join(made.split())
    assert committed == made, "engines/schema.py has changed: run python -m scripts.manifest_schema"


class Lenient(msgspec.Struct):
    """A struct that lets unknown fields pass."""

    name: str


class Unnamed(msgspec.Struct, forbid_unknown_fields=True):
    """A pattern that the schema has no name for."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[b-y]+\Z")]


class Bounded(msgspec.Struct, forbid_unknown_fields=True):
    """A list of bounded length."""

    names: Annotated[list[str], msgspec.Meta(max_length=3)]


class Binary(msgspec.Struct, forbid_unknown_fields=True):
    """Bytes."""

    data: bytes


@pytest.mark.parametrize("root", [Lenient, Unnamed, Bounded, Binary])
def test_what_cxx_cannot_read_alike_is_refused(root: type[msgspec.Struct]) -> None:
    with pytest.raises(NotImplementedError):
        render(root)


@pytest.mark.parametrize(
    "pattern", [r"^(a|b)\Z", r"^[a-z]+z\Z", r"^a*[b-c]?\Z", r"^[^a]\Z", r"^\d\Z", r"^a$", r"^a.\Z", "a"]
)
def test_a_pattern_that_is_more_than_runs_is_refused(pattern: str) -> None:
    with pytest.raises(NotImplementedError, match="matcher"):
        runs(pattern)
