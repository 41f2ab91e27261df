"""The manifest of a bundle: what it is, what its networks take and give, and the digest of every file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal

import msgspec

from engines.errors import ManifestError, SchemaVersionError

SCHEMA_VERSION = 1
KIND: Final = "arcflow-bundle"
MANIFEST_NAME = "manifest.json"
FLUX_NETWORKS = ("backbone", "clip", "t5", "vae_decoder")
FLUX_TOKENIZERS = ("clip", "t5")
_DIGEST = re.compile(rb'"digest": "([0-9a-f]{64})"')

Count = Annotated[int, msgspec.Meta(ge=1)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Word = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]+$")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output of a network; a dimension that is a string is symbolic (free within the limits)."""

    name: str
    dtype: Literal["float32", "float16", "bfloat16", "int64", "int32"]
    shape: Sequence[int | str]


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One network of the bundle: its file and its ports, by name."""

    file: str
    inputs: Sequence[Port]
    outputs: Sequence[Port]


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The least, usual and greatest value of a dimension."""

    min: Count
    opt: Count
    max: Count


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shapes the networks take: images a call, pixels (multiples of ``multiple``), T5 tokens."""

    batch: Range
    width: Range
    height: Range
    text_tokens: Range
    multiple: Count


class Latent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Geometry of the latent: ``vae_factor`` pixels a latent cell, ``patch`` x ``patch`` cells a token.

    The VAE decoder takes ``z / scaling_factor + shift_factor``.
    """

    channels: Count
    patch: Count
    vae_factor: Count
    scaling_factor: Positive
    shift_factor: float


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Constants of the sigma schedule, the guidance fed to the backbone, and the evaluations: usual and most."""

    shift: Positive
    guidance: float
    nfe: Count
    final_step_ratio: Positive
    max_nfe: Count = 64


class Momentum(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shape of the momentum field: K modes, packed channels of a token, patch positions that share a gate."""

    modes: Count
    packed_channels: Count
    patch_positions: Count


class TokenizerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A ``tokenizer.json`` and how its ids are brought to length (start and end ids come from the file itself)."""

    file: str
    max_tokens: Count
    pad_id: Annotated[int, msgspec.Meta(ge=0)]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the bundle: posix path relative to its root, sha256 in hexadecimal, size in bytes."""

    path: str
    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=0)]


class ParityResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a network was from its original at one shape when the bundle was built, and what was allowed."""

    network: str
    shape: Mapping[str, int]
    relative_error: float
    limit: float


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything the runtime must know of a bundle. ``files`` and ``digest`` are filled in by the writer.

    ``digest`` is the sha256 of ``manifest.json`` with its own 64 digits left out, so that no byte of the bundle
    can change unseen. ``parents`` holds the digests of what the bundle was made from, ``tools`` their versions.
    """

    model: Name
    architecture: Literal["flux"]
    precision: Word
    target: Word
    networks: Mapping[str, Network]
    limits: Limits
    latent: Latent
    schedule: Schedule
    momentum: Momentum
    tokenizers: Mapping[str, TokenizerSpec]
    parents: Mapping[str, str]
    tools: Mapping[str, str]
    parity: Sequence[ParityResult]
    files: Sequence[FileEntry] = ()
    digest: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?$")] = ""
    kind: Literal["arcflow-bundle"] = KIND
    schema_version: int = SCHEMA_VERSION


class _Header(msgspec.Struct, frozen=True):
    """What is looked at before anything else; the rest of the object may be of any version."""

    schema_version: int
    kind: str


def parse_manifest(data: bytes) -> Manifest:
    """Decode and check the bytes of a ``manifest.json``.

    Raises SchemaVersionError for a version other than 1, ManifestError for anything that is not a whole and
    consistent manifest, a wrong ``digest`` included.
    """
    try:
        header = msgspec.json.decode(data, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ManifestError(f"{MANIFEST_NAME} is damaged or is not a bundle's manifest: {error}") from error
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


def check_manifest(manifest: Manifest) -> None:
    """Raise ManifestError where the parts of a well-typed manifest contradict each other."""
    _check_files(manifest.files)
    listed = {entry.path for entry in manifest.files}
    _check_keys("networks", manifest.networks, FLUX_NETWORKS)
    _check_keys("tokenizers", manifest.tokenizers, FLUX_TOKENIZERS)
    for group in (manifest.networks, manifest.tokenizers):
        for key, part in group.items():
            if part.file not in listed:
                raise ManifestError(f"{MANIFEST_NAME}: {key!r} needs {part.file!r}, which is not among its files")
    for field in ("batch", "width", "height", "text_tokens"):
        limit: Range = getattr(manifest.limits, field)
        if not limit.min <= limit.opt <= limit.max:
            raise ManifestError(
                f"{MANIFEST_NAME}: limits.{field} is {limit.min}/{limit.opt}/{limit.max}; min <= opt <= max must hold"
            )
    _check_geometry(manifest)
    if manifest.schedule.nfe > manifest.schedule.max_nfe:
        raise ManifestError(
            f"{MANIFEST_NAME}: schedule.nfe is {manifest.schedule.nfe}, above max_nfe {manifest.schedule.max_nfe}"
        )


def unsafe_path(path: str) -> str | None:
    """Why ``path`` may not name a file of a bundle, or None where it may (relative, posix, inside, normal form)."""
    if not path or "\0" in path or not path.isprintable():
        return "is empty or has control characters"
    if "\\" in path:
        return "has a backslash"
    if path.startswith("/") or (len(path) > 1 and path[1] == ":"):
        return "is absolute"
    if ".." in path.split("/"):
        return "leaves the bundle"
    return None if PurePosixPath(path).as_posix() == path and path != "." else "is not in its shortest form"


def _render(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


def _check_digest(data: bytes, digest: str) -> None:
    found = _DIGEST.findall(data)
    if len(found) != 1 or found[0] != digest.encode():
        raise ManifestError(f"{MANIFEST_NAME} was altered: it must hold one digest of itself, found {len(found)}")
    actual = hashlib.sha256(data.replace(found[0], b"", 1)).hexdigest()
    if actual != digest:
        raise ManifestError(f"{MANIFEST_NAME} was altered: its digest is {actual}, it states {digest}")


def _check_files(files: Sequence[FileEntry]) -> None:
    for entry in files:
        reason = unsafe_path(entry.path)
        if reason:
            raise ManifestError(f"{MANIFEST_NAME}: the file path {entry.path!r} {reason}; it must lie in the bundle")
        if entry.path == MANIFEST_NAME:
            raise ManifestError(f"{MANIFEST_NAME} lists itself among its files")
    paths = [entry.path for entry in files]
    if paths != sorted(set(paths)):
        raise ManifestError(f"{MANIFEST_NAME}: files are not sorted by path, or one is listed twice")


def _check_keys(field: str, found: Mapping[str, object], expected: Sequence[str]) -> None:
    if sorted(found) != sorted(expected):
        raise ManifestError(
            f"{MANIFEST_NAME}: {field} are {', '.join(sorted(found)) or 'none'}; flux has {', '.join(expected)}"
        )


def _check_geometry(manifest: Manifest) -> None:
    limits, latent, momentum = manifest.limits, manifest.latent, manifest.momentum
    token_pixels = latent.patch * latent.vae_factor
    if limits.multiple % token_pixels:
        raise ManifestError(f"{MANIFEST_NAME}: limits.multiple is {limits.multiple}; {token_pixels} px must divide it")
    for field in ("width", "height"):
        limit: Range = getattr(limits, field)
        if any(value % limits.multiple for value in (limit.min, limit.opt, limit.max)):
            raise ManifestError(f"{MANIFEST_NAME}: limits.{field} has a value that {limits.multiple} does not divide")
    positions = latent.patch**2
    if momentum.patch_positions != positions or momentum.packed_channels != latent.channels * positions:
        raise ManifestError(
            f"{MANIFEST_NAME}: momentum has {momentum.packed_channels} packed channels and {momentum.patch_positions} "
            f"patch positions; the latent makes {latent.channels * positions} and {positions}"
        )
