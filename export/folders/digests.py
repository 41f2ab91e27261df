"""Digests of large sources, remembered: a build that is run again does not read tens of gigabytes again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from export.reporting import Count, silent
from foundation.errors import ArcFlowError
from foundation.files import atomic_file

CACHE = Path(".work") / "export" / "digests.json"
"""What builds remember whose work folder is not named, and what calibration and sensitivity remember."""

_CHUNK = 4 << 20
_SETTLED = 2.0
"""Seconds: a file that was changed later than this before it was read might change again within its time stamp."""

Fingerprint = tuple[int, int, int]
"""Size, time of the last change in ns, and inode of a file."""


def digest_tree(folder: Path, cache: Path, report: Count = silent, names: Collection[str] | None = None) -> str:
    """What :func:`foundation.files.sha256_tree` gives for ``folder``, reading only files that are not known yet.

    cache: a small JSON file, made where there is none. A file is known while its size, time of change and inode are
    those it was read with. A run that is stopped keeps what it has read. Links are followed. report: told of bytes;
    names: of the files right in the folder that count alone, as if there were no others.
    Raises OSError where a file cannot be read.
    """
    known = _load(cache)
    paths = folder.rglob("*") if names is None else (folder / name for name in names)
    files = sorted(path for path in paths if path.is_file())
    total, done = sum(path.stat().st_size for path in files), 0
    digest = hashlib.sha256()
    for path in files:
        name, mark = str(path.absolute()), _fingerprint(path)
        entry = known.get(name)
        if entry is None or entry[0] != mark:
            entry = (mark, _read(path, lambda read, before=done: report(before + read, total)))  # type: ignore[misc]
            if _fingerprint(path) == mark and time.time() - mark[1] / 1e9 > _SETTLED:
                known[name] = entry
                with suppress(ArcFlowError):  # What cannot be remembered only costs time.
                    _save(cache, known)
        done += mark[0]
        report(done, total)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{entry[1]}\n".encode())
    return digest.hexdigest()


def _fingerprint(path: Path) -> Fingerprint:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _read(path: Path, report: Callable[[int], object]) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report(done)
    return digest.hexdigest()


def _load(cache: Path) -> dict[str, tuple[Fingerprint, str]]:
    """What is known; nothing where the cache is missing or damaged: it only saves time."""
    try:
        entries = json.loads(cache.read_text())
        return {name: ((size, changed, inode), sha256) for name, (size, changed, inode, sha256) in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _save(cache: Path, known: dict[str, tuple[Fingerprint, str]]) -> None:
    entries = {name: [*mark, sha256] for name, (mark, sha256) in sorted(known.items())}
    with atomic_file(cache) as temporary:
        temporary.write_text(json.dumps(entries, indent=0) + "\n")
