"""Opening a bundle: nothing of it is used before it is known to be exactly what its manifest says."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from engines.errors import BundleError, BundleNotFoundError, ManifestError
from engines.manifest import MANIFEST_NAME, FileEntry, Manifest, parse_manifest
from engines.names import BundleName, rebuild_hint

_MANIFEST_MAX = 16 << 20
"""Bytes: a manifest beyond this is refused before it is read into memory."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. Made by :func:`open_bundle`; holds no file open and no file's bytes."""

    root: Path
    manifest: Manifest
    _entries: dict[str, FileEntry] = field(repr=False)

    @property
    def name(self) -> BundleName:
        """Model, precision and target, as the manifest states them."""
        return BundleName(self.manifest.model, self.manifest.precision, self.manifest.target)

    def read(self, path: str) -> bytes:
        """The content of one file of the bundle: the very bytes whose digest was checked, just now.

        The file is opened once; what is returned was hashed in memory, so that a file which is changed after
        :func:`open_bundle` is refused too. Raises BundleError.
        """
        entry = self._entries.get(path)
        if entry is None:
            raise BundleError(f"{self.root} has no file {path!r}; it has {', '.join(sorted(self._entries))}")
        data = _read_file(self.root, path, entry.size)
        _check_digest(self.root, entry, hashlib.sha256(data).hexdigest())
        return data


def open_bundle(path: Path) -> Bundle:
    """Verify the bundle in the folder ``path`` and return it.

    Checked: the manifest (schema, version, own digest); that exactly the listed files are there, all of them
    regular files inside the folder and none a symbolic or hard link; the size and sha256 of each of them.
    Raises BundleNotFoundError, ManifestError or BundleError: which file, what was expected, what to do.
    """
    if not is_folder(path):
        raise BundleNotFoundError(f"there is no bundle at {path}: the folder does not exist; {_hint(path)}")
    root = path.resolve()
    data = _read_file(root, MANIFEST_NAME, None)
    try:
        manifest = parse_manifest(data)
    except ManifestError as error:
        raise type(error)(f"{root}: {error}; {_hint(root)}") from error
    entries = {entry.path: entry for entry in manifest.files}
    _check_listing(root, entries)
    for entry in manifest.files:
        _check_digest(root, entry, _digest_file(root, entry))
    return Bundle(root=root, manifest=manifest, _entries=entries)


def is_folder(path: Path) -> bool:
    """Whether there is a folder at ``path``; False, and no error, for a name that the system will not look at."""
    try:
        return path.is_dir()
    except OSError:  # A name too long for the file system, for instance.
        return False


def _check_listing(root: Path, entries: dict[str, FileEntry]) -> None:
    """Raise BundleError unless the files under ``root`` are the manifest and exactly ``entries``."""
    expected = {*entries, MANIFEST_NAME}
    folders = {parent.as_posix() for path in entries for parent in PurePosixPath(path).parents}
    found: set[str] = set()
    hint = f"remove it, or {_hint(root)}"
    pending = [root]
    while pending:
        try:
            with os.scandir(pending.pop()) as listing:
                children = sorted(listing, key=lambda child: child.name)
        except OSError as error:
            raise BundleError(f"cannot list {root}: {error.strerror or error}; {_hint(root)}") from error
        for child in children:
            path = Path(child.path).relative_to(root).as_posix()
            if child.is_dir(follow_symlinks=False):
                if path not in folders:
                    raise BundleError(f"{root}: the folder {path!r} is not in the manifest: {hint}")
                pending.append(Path(child.path))
                continue
            _check_kind(root, path, child.stat(follow_symlinks=False))
            if path not in expected:
                raise BundleError(f"{root}: the file {path!r} is not in the manifest: {hint}")
            found.add(path)
    missing = sorted(expected - found)
    if missing:
        raise BundleError(f"{root}: the file {missing[0]!r} is missing ({len(missing)} in all); {_hint(root)}")


def _check_kind(root: Path, path: str, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise BundleError(f"{root}: {path!r} is a symbolic link; a bundle holds plain files only: copy the file itself")
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{root}: {path!r} is not a plain file; a bundle holds plain files only; {_hint(root)}")
    if status.st_nlink > 1:
        raise BundleError(
            f"{root}: {path!r} is a hard link (it has {status.st_nlink} names); a bundle holds plain files only: "
            "copy the bundle with cp -r and use the copy"
        )


def _read_file(root: Path, path: str, size: int | None) -> bytes:
    """The bytes of ``path``, which must be a plain file of ``size`` bytes (None: the manifest)."""
    try:
        # A fifo that took the file's place must not block the open; a link that did must not be followed.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(root / path, flags), "rb") as stream:
            status = os.fstat(stream.fileno())
            _check_kind(root, path, status)
            _check_size(root, path, status.st_size, size)
            data = stream.read(status.st_size + 1)
    except FileNotFoundError as error:
        raise BundleError(f"{root}: the file {path!r} is missing; {_hint(root)}") from error
    except OSError as error:
        if (root / path).is_symlink():
            raise BundleError(f"{root}: {path!r} is a symbolic link; a bundle holds plain files only") from error
        raise BundleError(f"{root}: cannot read {path!r}: {error.strerror or error}; {_hint(root)}") from error
    _check_size(root, path, len(data), size)
    return data


def _digest_file(root: Path, entry: FileEntry) -> str:
    """sha256 of a listed file in constant memory; its size is checked first."""
    digest = hashlib.sha256()
    try:
        with (root / entry.path).open("rb") as stream:
            _check_size(root, entry.path, os.fstat(stream.fileno()).st_size, entry.size)
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise BundleError(f"{root}: cannot read {entry.path!r}: {error.strerror or error}; {_hint(root)}") from error
    return digest.hexdigest()


def _check_size(root: Path, path: str, actual: int, expected: int | None) -> None:
    if expected is None:
        if actual > _MANIFEST_MAX:
            raise ManifestError(f"{root}: {path!r} has {actual} bytes, more than any manifest; {_hint(root)}")
    elif actual != expected:
        raise BundleError(f"{root}: {path!r} has {actual} bytes, its manifest says {expected}; {_hint(root)}")


def _check_digest(root: Path, entry: FileEntry, actual: str) -> None:
    if actual != entry.sha256:
        raise BundleError(
            f"{root}: {entry.path!r} was altered: its sha256 is {actual[:16]}..., its manifest says "
            f"{entry.sha256[:16]}...; {_hint(root)}"
        )


def _hint(root: Path) -> str:
    return rebuild_hint(root.name)
