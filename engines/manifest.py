"""The manifest of a bundle: reading and writing ``manifest.json``. Its structs are those of :mod:`engines.schema`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import msgspec

from engines.checks import check_manifest
from engines.errors import ManifestError, SchemaVersionError
from engines.schema import KIND, MANIFEST_NAME, SCHEMA_VERSION, Manifest

_DAMAGED = "is damaged or is not a bundle's manifest"
_DIGEST = re.compile(rb'"digest": "([0-9a-f]{64})"')


class _Header(msgspec.Struct, frozen=True):
    """What is looked at before anything else; the rest of the object may be of any version."""

    schema_version: int
    kind: str


def parse_manifest(data: bytes) -> Manifest:
    """Decode and check the bytes of a ``manifest.json``.

    Raises SchemaVersionError for another version than ``SCHEMA_VERSION``, ManifestError for anything that is not a
    whole and consistent manifest, a wrong ``digest`` included.
    """
    try:
        header = msgspec.json.decode(data, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ManifestError(f"{MANIFEST_NAME} {_DAMAGED}: {error}") from error
    except RecursionError as error:  # In fields that are not looked at here; the schema itself is a few levels deep.
        raise ManifestError(f"{MANIFEST_NAME} {_DAMAGED}: it is nested too deeply") from error
    if header.kind != KIND:
        raise ManifestError(f"{MANIFEST_NAME} is of kind {header.kind!r}; a bundle's is {KIND!r}")
    if header.schema_version != SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{MANIFEST_NAME} has schema version {header.schema_version}, this ArcFlow reads version "
            f"{SCHEMA_VERSION}: use the ArcFlow that made the bundle, or build the bundle again"
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ManifestError(f"{MANIFEST_NAME} does not follow the schema: {error}") from error
    _check_digest(data, manifest.digest)
    check_manifest(manifest)
    return manifest


def render_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``: sorted keys, two-space indent, final newline, ``digest`` computed anew."""
    blank = _render(msgspec.structs.replace(manifest, digest=""))
    return _render(msgspec.structs.replace(manifest, digest=hashlib.sha256(blank).hexdigest()))


def source_digest(files: Mapping[str, str]) -> str:
    """One digest of a network's ONNX file and its data files, from the sha256 of each by its path.

    It is the sha256 of a line ``path NUL sha256`` a file, sorted by path: the key that ties a plan to its ONNX.
    """
    lines = (f"{path}\0{sha256}\n" for path, sha256 in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _render(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


def _check_digest(data: bytes, digest: str) -> None:
    found = _DIGEST.findall(data)
    if len(found) != 1 or found[0] != digest.encode():
        raise ManifestError(f"{MANIFEST_NAME} was altered: it must hold one digest of itself, found {len(found)}")
    actual = hashlib.sha256(data.replace(found[0], b"", 1)).hexdigest()
    if actual != digest:
        raise ManifestError(f"{MANIFEST_NAME} was altered: its digest is {actual}, it states {digest}")
