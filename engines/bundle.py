"""Opening a bundle: nothing of it is used before it is known to be exactly what its manifest says."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from engines.errors import BundleError, BundleNotFoundError, ManifestError
from engines.files import check_digest, check_kind, check_link, digest_file, hint, map_file, read_file, read_manifest
from engines.locate import BundleName
from engines.manifest import parse_manifest
from engines.schema import MANIFEST_NAME, FileEntry, Manifest


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest and list of files were checked. Made by :func:`open_bundle`; holds no file open."""

    root: Path
    manifest: Manifest
    _entries: Mapping[str, FileEntry] = field(repr=False)
    allow_links: bool = False

    @property
    def name(self) -> BundleName:
        """Model, precision and target, as the manifest states them."""
        return BundleName(self.manifest.model, self.manifest.precision, self.manifest.target)

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(entry.size for entry in self._entries.values())

    def read(self, path: str) -> bytes:
        """The content of one file of the bundle: the very bytes whose digest was checked, just now.

        The file is opened once; what is returned was hashed in memory, so that a file which is changed after
        :func:`open_bundle` is rejected too. For files that fit in memory. Raises BundleError.
        """
        return read_file(self.root, self._entry(path), self.allow_links)

    def map(self, path: str) -> memoryview:
        """The content of one file, of any size, as a read-only mapping whose digest was checked through itself.

        The file is opened once and never again by name: what takes its place in the folder afterwards is not seen.
        The pages are the file's own and take no memory of the process's, which has a price that :meth:`read` does not
        pay: who may write to that very file (its owner, the administrator) can still change what the mapping shows,
        and a file that is cut short ends the process with a bus error. Keep bundles where only you write. The mapping
        lives as long as the view. Raises BundleError.
        """
        return map_file(self.root, self._entry(path), self.allow_links)

    def _entry(self, path: str) -> FileEntry:
        entry = self._entries.get(path)
        if entry is None:
            raise BundleError(f"{self.root} has no file {path!r}; it has {', '.join(sorted(self._entries))}")
        return entry


def open_bundle(path: Path, contents: Literal["now", "when used"] = "now", allow_links: bool = False) -> Bundle:
    """Verify the bundle in the folder ``path`` and return it.

    Checked: the manifest (schema, version, own digest); that exactly the listed files are there, all of them
    regular files inside the folder and none a symbolic or hard link; the size and sha256 of each of them.
    contents: "when used" leaves sizes and digests to :meth:`Bundle.read` and :meth:`Bundle.map`, which check them
    in any case, so that a loader reads many gigabytes once. allow_links: files may be symbolic links to plain files
    anywhere, and have other names; links to folders are not followed.
    Raises BundleNotFoundError, ManifestError or BundleError: which file, what was expected, what to do.
    """
    if not is_folder(path):
        raise BundleNotFoundError(f"there is no bundle at {path}: the folder does not exist; {hint(path)}")
    bundle = inspect(path.resolve(), allow_links=allow_links)
    if contents == "now":
        for entry in bundle.manifest.files:
            check_digest(bundle.root, entry, digest_file(bundle.root, entry, allow_links))
    return bundle


def inspect(root: Path, linked: Collection[str] = (), allow_links: bool = False) -> Bundle:
    """The bundle in ``root`` with its manifest and its listing checked, and no content.

    linked: files that have a second name for the moment (the writer's, while it takes them over).
    Raises ManifestError or BundleError.
    """
    data = read_manifest(root, allow_links)
    try:
        manifest = parse_manifest(data)
    except ManifestError as error:
        raise type(error)(f"{root}: {error}; {hint(root)}") from error
    entries = {entry.path: entry for entry in manifest.files}
    _check_listing(root, entries, linked, allow_links)
    return Bundle(root=root, manifest=manifest, _entries=entries, allow_links=allow_links)


def is_folder(path: Path) -> bool:
    """Whether there is a folder at ``path``; False, and no error, for a name that the system will not look at."""
    try:
        return path.is_dir()
    except OSError:  # A name too long for the file system, for instance.
        return False


def _check_listing(root: Path, entries: Mapping[str, FileEntry], linked: Collection[str], allow_links: bool) -> None:
    """Raise BundleError unless the files under ``root`` are the manifest and exactly ``entries``."""
    expected = {*entries, MANIFEST_NAME}
    folders = {parent.as_posix() for path in entries for parent in PurePosixPath(path).parents}
    found: set[str] = set()
    mend = f"remove it, or {hint(root)}"
    pending = [root]
    while pending:
        try:
            with os.scandir(pending.pop()) as listing:
                children = sorted((Path(child.path), child.stat(follow_symlinks=False)) for child in listing)
        except OSError as error:
            raise BundleError(f"cannot list {root}: {error.strerror or error}; {hint(root)}") from error
        for child, status in children:
            path = child.relative_to(root).as_posix()
            if stat.S_ISDIR(status.st_mode):
                if path not in folders:
                    raise BundleError(f"{root}: the folder {path!r} is not in the manifest: {mend}")
                pending.append(child)
                continue
            if allow_links and stat.S_ISLNK(status.st_mode):
                check_link(root, path)
            else:
                check_kind(root, path, status, names=None if allow_links else 2 if path in linked else 1)
            if path not in expected:
                raise BundleError(f"{root}: the file {path!r} is not in the manifest: {mend}")
            found.add(path)
    missing = sorted(expected - found)
    if missing:
        raise BundleError(f"{root}: the file {missing[0]!r} is missing ({len(missing)} in all); {hint(root)}")
