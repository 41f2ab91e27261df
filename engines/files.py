"""The files of a bundle, one by one: opened as plain files only, held to their size and digest.

``allow_links`` everywhere: a file may also be a symbolic link to a plain file, wherever that lies, or have other names
(hard links), as caches have it. The manifest's own paths stay inside the folder, and size and digest must fit as ever.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.errors import BundleError, ManifestError
from engines.locate import rebuild_hint
from engines.schema import MANIFEST_NAME, FileEntry

_MANIFEST_MAX = 16 << 20
"""Bytes: a manifest beyond this is rejected before it is read into memory."""

_CHUNK = 1 << 20


def read_manifest(root: Path, allow_links: bool) -> bytes:
    """The bytes of the manifest in ``root``. Raises ManifestError for a huge one, BundleError."""
    with _opened(root, MANIFEST_NAME, allow_links) as (handle, size):
        if size > _MANIFEST_MAX:
            raise ManifestError(f"{root}: {MANIFEST_NAME!r} has {size} bytes, more than any manifest; {hint(root)}")
        with open(handle, "rb", closefd=False) as stream:
            return stream.read(_MANIFEST_MAX)


def read_file(root: Path, entry: FileEntry, allow_links: bool) -> bytes:
    """The bytes of a listed file, read once and then hashed in memory. Raises BundleError."""
    with _opened(root, entry.path, allow_links) as (handle, size):
        _check_size(root, entry, size)
        with open(handle, "rb", closefd=False) as stream:
            data = stream.read(size + 1)
    _check_size(root, entry, len(data))
    check_digest(root, entry, hashlib.sha256(data).hexdigest())
    return data


def map_file(root: Path, entry: FileEntry, allow_links: bool = False) -> memoryview:
    """A listed file, mapped read-only and hashed through that mapping (:meth:`engines.bundle.Bundle.map`)."""
    if entry.size == 0:  # There is nothing to map.
        return memoryview(read_file(root, entry, allow_links))
    with _opened(root, entry.path, allow_links) as (handle, size):
        _check_size(root, entry, size)
        view = memoryview(mmap.mmap(handle, size, access=mmap.ACCESS_READ))
    check_digest(root, entry, hashlib.sha256(view).hexdigest())
    return view


def digest_file(root: Path, entry: FileEntry, allow_links: bool = False) -> str:
    """sha256 of a listed file in constant memory; its size is checked first. Raises BundleError."""
    digest = hashlib.sha256()
    with _opened(root, entry.path, allow_links) as (handle, size):
        _check_size(root, entry, size)
        while chunk := os.read(handle, _CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_kind(root: Path, path: str, status: os.stat_result, names: int | None = 1) -> None:
    """Raise BundleError unless ``status`` is that of a plain file with at most so many hard links (None: any)."""
    if stat.S_ISLNK(status.st_mode):
        raise _link(root, path)
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{root}: {path!r} is not a plain file; a bundle holds plain files only; {hint(root)}")
    if names is not None and status.st_nlink > names:
        raise BundleError(
            f"{root}: {path!r} is a hard link (it has {status.st_nlink} names); a bundle holds plain files only: "
            "copy the bundle with cp -rL and use the copy, or run it with --allow-links"
        )


def check_link(root: Path, path: str) -> None:
    """Raise BundleError where ``path`` is a symbolic link and does not lead to a plain file."""
    try:
        if not (root / path).is_symlink():
            return
        status = (root / path).stat()
    except FileNotFoundError as error:
        raise BundleError(
            f"{root}: {path!r} is a symbolic link that leads nowhere: fetch the bundle again, or {hint(root)}"
        ) from error
    except OSError as error:
        raise _unreadable(root, path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(
            f"{root}: {path!r} is a symbolic link that leads to no plain file: copy the bundle with cp -rL and use the "
            f"copy, or {hint(root)}"
        )


def check_digest(root: Path, entry: FileEntry, actual: str) -> None:
    """Raise BundleError unless ``actual`` is the digest in the manifest."""
    if actual != entry.sha256:
        raise BundleError(
            f"{root}: {entry.path!r} was altered: its sha256 is {actual[:16]}..., its manifest says "
            f"{entry.sha256[:16]}...; {hint(root)}"
        )


def hint(root: Path) -> str:
    """How to mend the bundle at ``root``: the end of an error message."""
    return rebuild_hint(root.name)


@contextmanager
def _opened(root: Path, path: str, allow_links: bool) -> Iterator[tuple[int, int]]:
    """Descriptor and size of a plain file of the bundle. Raises BundleError, also for what goes wrong in the block."""
    # A fifo that took the file's place must not block the open; a link that did must not be followed unasked.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if allow_links:
        check_link(root, path)
    else:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = os.open(root / path, flags)
        try:
            status = os.fstat(handle)
            check_kind(root, path, status, names=None if allow_links else 1)
            yield handle, status.st_size
        finally:
            os.close(handle)
    except FileNotFoundError as error:
        raise BundleError(f"{root}: the file {path!r} is missing; {hint(root)}") from error
    except OSError as error:
        if error.errno == errno.ELOOP and not allow_links:  # O_NOFOLLOW met a link.
            raise _link(root, path) from error
        raise _unreadable(root, path, error) from error


def _link(root: Path, path: str) -> BundleError:
    return BundleError(
        f"{root}: {path!r} is a symbolic link; a bundle holds plain files only: copy the bundle with cp -rL and use "
        "the copy, or run it with --allow-links"
    )


def _unreadable(root: Path, path: str, error: OSError) -> BundleError:
    return BundleError(f"{root}: cannot read {path!r}: {error.strerror or error}; {hint(root)}")


def _check_size(root: Path, entry: FileEntry, actual: int) -> None:
    if actual != entry.size:
        raise BundleError(f"{root}: {entry.path!r} has {actual} bytes, its manifest says {entry.size}; {hint(root)}")
