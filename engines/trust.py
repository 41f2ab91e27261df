"""Whose plans are executed: a plan is code, so only those that this machine built are.

A digest finds damage, not malice. On its first build a machine makes itself a random key, which stays in the user's own
folder; the builder seals the digests of its plans with it (HMAC-SHA256), and nothing loads a plan whose seal this
machine cannot reproduce. A bundle of plans from elsewhere is therefore built again here, from its ONNX, which is data.
Signatures by other people's keys would be another kind of seal, checked here as well; there are none yet.

The key protects against files, not against programs that run as the same user: those can read it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from engines.errors import TrustError
from engines.locate import BundleName, rebuild_hint
from engines.schema import Manifest

ENVIRONMENT = "ARCFLOW_KEYS"
"""Environment variable that names another folder for this machine's key."""

_KEY_FILE = "plans.key"
_KEY_BYTES = 32
_PURPOSE = "arcflow plans 1"


def key_folder() -> Path:
    """Where this machine's key lies: $ARCFLOW_KEYS, else ``arcflow`` in the user's folder of configuration."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME") or os.environ.get("APPDATA")
    return (Path(base) if base else Path.home() / ".config") / "arcflow"


def seal(plans: Mapping[str, str]) -> str:
    """This machine's seal of the plans: ``KEY:MAC`` in hexadecimal (16 digits name the key, 64 are the HMAC).

    plans: sha256 of each network's plan. The key is made when there is none. Raises TrustError where it cannot be
    made or must not be used.
    """
    key = _read_key()
    return _seal(_make_key() if key is None else key, plans)


def sealed(manifest: Manifest) -> Manifest:
    """``manifest`` with its plans sealed, as ``finish`` of :func:`engines.writer.write_bundle`. Raises TrustError."""
    if manifest.engine is None:
        return manifest
    engine = msgspec.structs.replace(manifest.engine, seal=seal(plan_digests(manifest)))
    return msgspec.structs.replace(manifest, engine=engine)


def why_not_ours(manifest: Manifest) -> str | None:
    """What is wrong with the seal of the plans, in half a sentence; None where this machine built them.

    None too for a bundle without plans, which has no code in it. No key is made. Raises TrustError where the key is
    there and must not be used.
    """
    if manifest.engine is None:
        return None
    key, found = _read_key(), manifest.engine.seal
    if not found:
        return "its plans have no seal: no machine vouches for them"
    if key is None or found.split(":")[0] != _key_id(key):
        return "its plans were built on another machine (plans are code: they run only where they were built)"
    if not hmac.compare_digest(_seal(key, plan_digests(manifest)), found):
        return "the seal of its plans is broken: they are not those that were built here"
    return None


def require_ours(manifest: Manifest) -> None:
    """Raise TrustError for plans that are not this machine's; to be called before any is handed to TensorRT."""
    reason = why_not_ours(manifest)
    if reason is not None:
        name = BundleName(manifest.model, manifest.precision, manifest.target)
        raise TrustError(f"{name}: {reason}; {rebuild_hint(str(name))}")


def plan_digests(manifest: Manifest) -> dict[str, str]:
    """sha256 of the plan of each network."""
    digests = {entry.path: entry.sha256 for entry in manifest.files}
    return {name: digests[network.file] for name, network in manifest.networks.items() if network.format == "plan"}


def _seal(key: bytes, plans: Mapping[str, str]) -> str:
    message = json.dumps({"plans": dict(plans), "purpose": _PURPOSE}, sort_keys=True).encode()
    return f"{_key_id(key)}:{hmac.new(key, message, hashlib.sha256).hexdigest()}"


def _key_id(key: bytes) -> str:
    return hmac.new(key, b"arcflow key id", hashlib.sha256).hexdigest()[:16]


def _read_key() -> bytes | None:
    """The key, None where there is none; a key that others may read or replace is rejected."""
    path = key_folder() / _KEY_FILE
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # A fifo must not block it.
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrustError(
            f"cannot read the key {path}: {error.strerror or error}; it must be a file of your own"
        ) from error
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(handle)
        foreign = hasattr(os, "geteuid") and status.st_uid != os.geteuid()
        if not stat.S_ISREG(status.st_mode) or foreign or (os.name == "posix" and status.st_mode & 0o077):
            raise TrustError(
                f"the key {path} is open to others or not yours; run: chmod 600 {path} (or remove it, and build your "
                "plans again)"
            )
        key = stream.read(_KEY_BYTES + 1)
    if len(key) != _KEY_BYTES:
        raise TrustError(f"the key {path} is damaged: remove it, and build your plans again")
    return key


def _make_key() -> bytes:
    """A new key, written whole; the one that another process wrote in the meantime, if it did."""
    folder = key_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{_KEY_FILE}.", dir=folder)  # Mode 0600 from the start.
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(secrets.token_bytes(_KEY_BYTES))
                stream.flush()
                os.fsync(handle)
            with suppress(FileExistsError):
                os.link(name, folder / _KEY_FILE)  # Unlike a rename, it does not replace.
        finally:
            Path(name).unlink()
    except OSError as error:
        raise TrustError(
            f"cannot write a key in {folder}: {error.strerror or error}; name another folder of your own in "
            f"${ENVIRONMENT}"
        ) from error
    key = _read_key()
    if key is None:
        raise TrustError(f"the key in {folder} was removed while it was made; try again")
    return key
