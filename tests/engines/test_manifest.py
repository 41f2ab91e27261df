"""The manifest: what it takes, what it rejects, and that it is written one way only."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from engines.checks import check_manifest, unsafe_path
from engines.errors import ManifestError, SchemaVersionError
from engines.manifest import parse_manifest, render_manifest, source_digest
from engines.schema import (
    FileEntry,
    Latent,
    Limits,
    Manifest,
    Momentum,
    Network,
    Quantisation,
    Range,
    Schedule,
    ShapeRange,
    TokenizerSpec,
)
from tests.runtime import small_bundle, small_plans


def _complete(**changes: Any) -> Manifest:
    manifest = small_bundle.manifest()
    parts = [*manifest.networks.values(), *manifest.tokenizers.values()]
    files = [FileEntry(path, "a" * 64, 1) for path in sorted(part.file for part in parts)]
    return msgspec.structs.replace(manifest, **{"files": files, **changes})


def _networks(**changes: Any) -> dict[str, Network]:
    """The small bundle's networks with a changed CLIP."""
    networks = dict(small_bundle.manifest().networks)
    return {**networks, "clip": msgspec.structs.replace(networks["clip"], **changes)}


def _tokenizers(**changes: Any) -> dict[str, TokenizerSpec]:
    tokenizers = dict(small_bundle.manifest().tokenizers)
    return {**tokenizers, "t5": msgspec.structs.replace(tokenizers["t5"], **changes)}


def test_renders_and_parses_to_the_same_manifest() -> None:
    data = render_manifest(_complete())
    parsed = parse_manifest(data)
    assert render_manifest(parsed) == data
    made = msgspec.structs.replace(_complete(), digest=parsed.digest)
    assert json.loads(data) == json.loads(msgspec.json.encode(made))


def test_is_readable_json_with_sorted_keys() -> None:
    data = render_manifest(_complete())
    document = json.loads(data)
    assert list(document) == sorted(document)
    assert document["kind"] == "arcflow-bundle"
    assert document["schema_version"] == 4
    assert data.endswith(b"}\n")
    assert b'\n  "architecture": "flux"' in data


def test_the_order_of_dictionaries_does_not_matter() -> None:
    networks = dict(reversed(small_bundle.manifest().networks.items()))
    assert render_manifest(_complete(networks=networks)) == render_manifest(_complete())


@pytest.mark.parametrize("version", [0, 1, 2, 3, 5, 99])
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
        (("latent", "scaling_factor"), [0], "> 0"),
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
        ({"networks": {}}, "networks are none; flux has backbone, clip, conditioner, t5, vae_decoder"),
        ({"tokenizers": {}}, "tokenizers are none; flux has clip, t5"),
        ({"limits": msgspec.structs.replace(_LIMITS, batch=Range(2, 1, 4))}, "limits.batch is 2/1/4"),
        ({"limits": msgspec.structs.replace(_LIMITS, multiple=12)}, "limits.multiple is 12"),
        ({"limits": msgspec.structs.replace(_LIMITS, width=Range(16, 30, 64))}, "limits.width has a value"),
        ({"schedule": Schedule(1.7, 2.0, 9, 1.0, "float32", 8)}, "schedule.nfe is 9"),
        ({"momentum": Momentum(4, 16, 9)}, "patch positions"),
        ({"latent": Latent(3, 2, 4, [1.0], [0.0])}, "12 and 4"),
        ({"files": []}, "not among its files"),
        (
            {"architecture": "qwen"},
            "networks are backbone, clip, conditioner, t5, vae_decoder; qwen has backbone, text, vae_decoder",
        ),
        ({"latent": Latent(4, 2, 4, [1.0, 1.0], [0.0])}, "latent.scaling_factor has 2 numbers"),
        ({"latent": Latent(4, 2, 4, [1.0], [])}, "latent.shift_factor has 0 numbers"),
        (
            {"target": "sm89"},
            "each network of target 'sm89' is a plan; not so backbone, clip, conditioner, t5",
        ),
        ({"precision": "fp8"}, "quantisation must be described"),
        ({"quantisation": Quantisation(calibration="a" * 64, method="max", synthetic=False, layers=[])}, "only there"),
        ({"networks": _networks(data=["weights.safetensors"])}, "needs 'weights.safetensors'"),
        ({"networks": _networks(data=["tokenizers/t5.json"])}, "do not lie beside"),
        ({"networks": _networks(data=["clip.onnx", "backbone.onnx"])}, "do not lie beside|not sorted"),
        ({"networks": _networks(data=["vae_decoder.onnx", "t5.onnx"])}, "not sorted"),
        ({"tokenizers": _tokenizers(template="no place")}, 'must hold "{}" once'),
        ({"tokenizers": _tokenizers(template="{} {}")}, 'must hold "{}" once'),
        ({"tokenizers": _tokenizers(drop=12)}, "nothing is left"),
        ({"engine": small_plans.manifest().engine}, "an engine must be described for plans, and for them only"),
    ],
)
def test_what_contradicts_itself(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        check_manifest(_complete(**changes))


def _plans(target: str = "sm89", **changes: Any) -> Manifest:
    manifest = small_plans.manifest(target, **changes)
    parts = [*manifest.networks.values(), *manifest.tokenizers.values()]
    files = [FileEntry(path, "a" * 64, 1) for path in sorted(part.file for part in parts)]
    return msgspec.structs.replace(manifest, files=files)


@pytest.mark.parametrize("target", ["sm80", "sm89", "sm90", "sm100", "sm120", "rtx"])
def test_a_manifest_of_plans(target: str) -> None:
    assert parse_manifest(render_manifest(_plans(target))).target == target


_ENGINE = small_plans.manifest().engine
assert _ENGINE is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute_capabilities": ["sm90"]}, "target is 'sm89', which is sm89; its engine is for sm90"),
        ({"compute_capabilities": []}, "its engine is for none"),
        ({"onnx": {}}, "engine.onnx are none; flux has"),
        ({"profiles": {}}, "engine.profiles are none; flux has"),
        ({"profiles": {**_ENGINE.profiles, "clip": {}}}, "engine.profiles of 'clip' are for"),
        (
            {"profiles": {**_ENGINE.profiles, "clip": {"input_ids": ShapeRange([2, 32], [1, 32], [4, 32])}}},
            "'input_ids' of 'clip' does not fit",
        ),
        ({"profiles": {**_ENGINE.profiles, "clip": {"input_ids": ShapeRange([1], [1], [4])}}}, "does not fit"),
        (
            {"profiles": {**_ENGINE.profiles, "clip": {"input_ids": ShapeRange([1, 32], [2, 32], [4, 33])}}},
            "does not fit",
        ),
    ],
)
def test_an_engine_that_contradicts_its_bundle(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        check_manifest(_plans(**changes))


def test_plans_have_an_engine_and_no_data() -> None:
    with pytest.raises(ManifestError, match="an engine must be described"):
        check_manifest(msgspec.structs.replace(_plans(), engine=None))
    networks = dict(_plans().networks)
    networks["clip"] = msgspec.structs.replace(networks["clip"], data=["backbone.plan"])
    with pytest.raises(ManifestError, match="a plan holds its weights itself"):
        check_manifest(msgspec.structs.replace(_plans(), networks=networks))


def test_the_digest_of_a_source_is_of_every_file_and_its_name() -> None:
    both = {"a.onnx": "a" * 64, "a.safetensors": "b" * 64}
    assert source_digest(both) == source_digest(dict(reversed(both.items())))
    digests = {source_digest(both), source_digest({"a.onnx": "a" * 64}), source_digest({"b.onnx": "a" * 64})}
    assert len(digests) == 3


def test_limits_are_a_struct() -> None:
    assert isinstance(_LIMITS, Limits)


@pytest.mark.parametrize("path", ["a", "a.b", "a/b", "a/b/c.json", ".hidden", "with space"])
def test_safe_paths(path: str) -> None:
    assert unsafe_path(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../a",
        "a/../b",
        "a/..",
        "/a",
        "//a",
        "a//b",
        "a/",
        "./a",
        "a\\b",
        "C:a",
        "a\0b",
        "a\nb",
        "\u00e9",
    ],
)
def test_unsafe_paths(path: str) -> None:
    assert unsafe_path(path)
