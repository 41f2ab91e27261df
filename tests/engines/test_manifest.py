"""The manifest: what it takes, what it refuses, and that it is written one way only."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from engines.errors import ManifestError, SchemaVersionError
from engines.manifest import (
    FileEntry,
    Latent,
    Limits,
    Manifest,
    Momentum,
    Range,
    Schedule,
    check_manifest,
    parse_manifest,
    render_manifest,
    unsafe_path,
)
from tests.runtime import small_bundle


def _complete(**changes: Any) -> Manifest:
    manifest = small_bundle.manifest()
    parts = [*manifest.networks.values(), *manifest.tokenizers.values()]
    files = [FileEntry(path, "a" * 64, 1) for path in sorted(part.file for part in parts)]
    return msgspec.structs.replace(manifest, **{"files": files, **changes})


def test_renders_and_parses_to_the_same_manifest() -> None:
    data = render_manifest(_complete())
    parsed = parse_manifest(data)
    assert render_manifest(parsed) == data
    assert msgspec.structs.replace(parsed, digest="") == msgspec.structs.replace(_complete(), files=parsed.files)


def test_is_readable_json_with_sorted_keys() -> None:
    data = render_manifest(_complete())
    document = json.loads(data)
    assert list(document) == sorted(document)
    assert document["kind"] == "arcflow-bundle"
    assert document["schema_version"] == 1
    assert data.endswith(b"}\n")
    assert b'\n  "architecture": "flux"' in data


def test_the_order_of_dictionaries_does_not_matter() -> None:
    networks = dict(reversed(small_bundle.manifest().networks.items()))
    assert render_manifest(_complete(networks=networks)) == render_manifest(_complete())


@pytest.mark.parametrize("version", [0, 2, 99])
def test_unknown_versions(version: int) -> None:
    with pytest.raises(SchemaVersionError, match=f"schema version {version}"):
        parse_manifest(render_manifest(_complete(schema_version=version)))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("extra",), 1, "unknown field `extra`"),
        (("limits", "extra"), 1, "unknown field `extra`"),
        (("limits", "batch", "min"), 0, ">= 1"),
        (("limits", "batch", "min"), "1", "Expected `int`"),
        (("latent", "scaling_factor"), 0, "> 0"),
        (("architecture",), "unet", "Invalid enum value 'unet'"),
        (("model",), "../tiny", "matching regex"),
        (("precision",), "", "matching regex"),
        (("files", 0, "sha256"), "a" * 63, "matching regex"),
        (("files", 0, "size"), -1, ">= 0"),
        (("kind",), "other", "is of kind 'other'"),
        (("digest",), "0" * 64, "was altered"),
        (("digest",), "", "was altered"),
    ],
)
def test_what_does_not_follow_the_schema(path: tuple[str | int, ...], value: object, message: str) -> None:
    document = json.loads(render_manifest(_complete()))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ManifestError, match=message):
        parse_manifest(json.dumps(document).encode())


@pytest.mark.parametrize("field", ["networks", "limits", "schema_version", "kind", "files", "digest"])
def test_a_field_that_is_missing(field: str) -> None:
    document = json.loads(render_manifest(_complete()))
    del document[field]
    with pytest.raises(ManifestError, match=r"missing required field|was altered|is not among|damaged"):
        parse_manifest(json.dumps(document).encode())


_LIMITS = small_bundle.manifest().limits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": {}}, "networks are none; flux has backbone, clip, t5, vae_decoder"),
        ({"tokenizers": {}}, "tokenizers are none; flux has clip, t5"),
        ({"limits": msgspec.structs.replace(_LIMITS, batch=Range(2, 1, 4))}, "limits.batch is 2/1/4"),
        ({"limits": msgspec.structs.replace(_LIMITS, multiple=12)}, "limits.multiple is 12"),
        ({"limits": msgspec.structs.replace(_LIMITS, width=Range(16, 30, 64))}, "limits.width has a value"),
        ({"schedule": Schedule(1.7, 2.0, 9, 1.0, 8)}, "schedule.nfe is 9"),
        ({"momentum": Momentum(4, 16, 9)}, "patch positions"),
        ({"latent": Latent(3, 2, 4, 1.0, 0.0)}, "12 and 4"),
        ({"files": []}, "not among its files"),
    ],
)
def test_what_contradicts_itself(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        check_manifest(_complete(**changes))


def test_limits_are_a_struct() -> None:
    assert isinstance(_LIMITS, Limits)


@pytest.mark.parametrize("path", ["a", "a.b", "a/b", "a/b/c.json", ".hidden", "with space"])
def test_safe_paths(path: str) -> None:
    assert unsafe_path(path) is None


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../a", "a/../b", "a/..", "/a", "//a", "a//b", "a/", "./a", "a\\b", "C:a", "a\0b", "a\nb"]
)
def test_unsafe_paths(path: str) -> None:
    assert unsafe_path(path)
