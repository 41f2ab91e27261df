"""Writing a bundle: the files, then the manifest that names them, then one rename."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from engines.bundle import Bundle, open_bundle
from engines.errors import BundleError
from engines.manifest import MANIFEST_NAME, FileEntry, Manifest, check_manifest, render_manifest, unsafe_path
from foundation.files import atomic_directory, sha256_file


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, Path | bytes]) -> Bundle:
    """Write the bundle ``folder`` and return it, opened and verified.

    manifest: complete but for ``files`` and ``digest``, which are computed here from what was written.
    files: content by posix path relative to the bundle: bytes, or a file to copy.
    The folder appears whole or not at all; a bundle that stood there is replaced only by a verified one.
    Raises BundleError (a path that leaves the bundle, a source that cannot be read), ManifestError (a manifest that
    contradicts itself) or ArcFlowError (a folder that cannot be written).
    """
    for path in files:
        reason = unsafe_path(path)
        if reason or path == MANIFEST_NAME:
            raise BundleError(f"cannot put {path!r} in a bundle: it {reason or 'is written by the writer itself'}")
    with atomic_directory(folder) as temporary:
        entries = [_place(temporary, path, files[path]) for path in sorted(files)]
        complete = msgspec.structs.replace(manifest, files=entries)
        check_manifest(complete)
        (temporary / MANIFEST_NAME).write_bytes(render_manifest(complete))
        open_bundle(temporary)
    return open_bundle(folder)


def _place(root: Path, path: str, content: Path | bytes) -> FileEntry:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        target.write_bytes(content)
    else:
        try:
            source = content.open("rb")
        except OSError as error:
            raise BundleError(f"cannot read {content} for the bundle: {error.strerror or error}") from error
        with source, target.open("wb") as stream:
            shutil.copyfileobj(source, stream, 1 << 20)
    return FileEntry(path=path, sha256=sha256_file(target), size=target.stat().st_size)
