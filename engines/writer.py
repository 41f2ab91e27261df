"""Writing a bundle: the files, then the manifest that names them, then one rename.

A file of many gigabytes is read as seldom as can be: copied files are hashed while they are copied and once more where
they lie, files that are taken over are hashed once, where they lie.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from engines.bundle import Bundle, inspect
from engines.checks import check_manifest, unsafe_path
from engines.errors import BundleError
from engines.files import check_digest, digest_file
from engines.manifest import render_manifest
from engines.schema import MANIFEST_NAME, FileEntry, Manifest
from foundation.files import atomic_directory, sha256_file

_CHUNK = 1 << 20


def write_bundle(
    folder: Path,
    manifest: Manifest,
    files: Mapping[str, Path | bytes],
    *,
    expected: Mapping[str, str] | None = None,
    consume: Collection[str] = (),
    finish: Callable[[Manifest], Manifest] | None = None,
) -> Bundle:
    """Write the bundle ``folder`` and return it, verified.

    manifest: complete but for ``files`` and ``digest``, which are computed here from what was written.
    files: content by posix path relative to the bundle: bytes, or a file. expected: sha256 of those of ``files`` whose
    content is known already; what is written must be that. consume: those of ``files`` whose source is
    taken over, without a copy where it lies on the bundle's device, and is gone when this returns: never a file of
    the user's. Sources keep their place until the bundle has its own, so that no failure and no kill loses them; a kill
    in the instant between leaves a bundle that is rejected for its hard links, and files to write it from again.
    finish: what else the manifest is to say once its files have their digests (a seal of its plans).
    The folder appears whole or not at all; a bundle that stood there is replaced only by a verified one.
    Raises BundleError (a path that leaves the bundle, a source that cannot be read or is not what was expected),
    ManifestError (a manifest that contradicts itself) or ArcFlowError (a folder that cannot be written).
    """
    for path in files:
        reason = unsafe_path(path)
        if reason or path == MANIFEST_NAME:
            raise BundleError(f"cannot put {path!r} in a bundle: it {reason or 'is written by the writer itself'}")
    wanted = expected or {}
    taken = {path: content for path, content in files.items() if path in consume and isinstance(content, Path)}
    _clear_leftovers(folder, taken)
    with atomic_directory(folder) as temporary:
        placed = [_place(temporary, path, files[path], path in taken, wanted.get(path)) for path in sorted(files)]
        complete = msgspec.structs.replace(manifest, files=[part.entry for part in placed])
        if finish is not None:
            complete = finish(complete)
        check_manifest(complete)
        (temporary / MANIFEST_NAME).write_bytes(render_manifest(complete))
        bundle = inspect(temporary, linked={part.entry.path for part in placed if part.linked})
        for part in placed:
            if not part.linked:
                check_digest(temporary, part.entry, digest_file(temporary, part.entry))
    _remove(taken.values(), folder)
    return replace(bundle, root=folder.resolve())  # Not looked at again: another writer may be replacing it already.


@dataclass(frozen=True)
class _Placed:
    """A file in its place. linked: it is the source itself under a second name, and was hashed where it lies."""

    entry: FileEntry
    linked: bool


def _place(root: Path, path: str, content: Path | bytes, take: bool, expected: str | None) -> _Placed:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    linked = take and isinstance(content, Path) and _link(content, target)
    if isinstance(content, bytes):
        target.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
    else:
        digest = sha256_file(target) if linked else _copy(content, target)
    if expected not in (None, digest):
        where = content if isinstance(content, Path) else "what was given"
        raise BundleError(
            f"{path} is not what was made for this bundle: {where} has sha256 {digest[:12]}, {expected[:12]} is "
            "needed; something else changed it: run the command again, which makes it anew"
        )
    return _Placed(FileEntry(path=path, sha256=digest, size=target.stat().st_size), linked)


def _copy(source: Path, target: Path) -> str:
    """Copy a file; the digest of what was read."""
    digest = hashlib.sha256()
    try:
        stream = source.open("rb")
    except OSError as error:
        raise BundleError(f"cannot read {source} for the bundle: {error.strerror or error}") from error
    with stream, target.open("wb") as copy:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            copy.write(chunk)
    return digest.hexdigest()


def _link(source: Path, target: Path) -> bool:
    """Give a plain file its place in the bundle as a second name; False where it must be copied instead.

    That is where it lies on another device, where the file system has no hard links, or where the file could not be
    taken from its folder afterwards or has yet another name.
    """
    try:
        status = source.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or not os.access(source.parent, os.W_OK):
            return False
        os.link(source, target, follow_symlinks=False)
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True


def _clear_leftovers(folder: Path, sources: Mapping[str, Path]) -> None:
    """Remove what a killed writer of the same bundle left beside it: the folders in which ``sources`` have a name."""
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        for path, source in sources.items():
            with suppress(OSError):
                if (leftover / path).samefile(source):
                    shutil.rmtree(leftover, ignore_errors=True)


def _remove(sources: Iterable[Path], folder: Path) -> None:
    """Remove the files that the bundle now holds; those of the bundle that it replaced are gone already."""
    for source in dict.fromkeys(sources):
        if source.resolve().is_relative_to(folder.resolve()):
            continue
        try:
            source.unlink()
        except OSError as error:
            raise BundleError(
                f"{folder} is complete, but {source} cannot be removed ({error.strerror or error}): remove it, "
                "or the bundle is rejected for being a hard link"
            ) from error
