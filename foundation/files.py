"""Digests, names, and writes that either happen whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foundation.errors import ArcFlowError

_CHUNK = 1 << 20
_SLUG_CHARACTERS = 48


def slug(prompt: str) -> str:
    """A file name of a prompt: its ASCII letters and digits, with dashes between."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:_SLUG_CHARACTERS].strip("-") or "image"


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of the bytes of ``path``, read in chunks (constant memory)."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tree(root: Path) -> str:
    """Hexadecimal sha256 of a directory's content: every regular file's relative path and digest, sorted.

    Two directories have equal digests exactly when they hold the same files with the same bytes.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` that is renamed onto it when the block ends well.

    If the block raises, the temporary file is removed and ``path`` keeps what it had.
    Raises :class:`ArcFlowError` when the folder cannot be written.
    """
    temporary = _temporary_sibling(path)
    try:
        yield temporary
        _apply_umask(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ArcFlowError(_cannot_write(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``path`` that takes its place when the block ends well.

    A directory that already stands at ``path`` is replaced only then; of two writers at once the last one stays. If the
    block raises, the temporary directory is removed. Raises :class:`ArcFlowError` when the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ArcFlowError(_cannot_write(path, error)) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        _take_place(temporary, path)
    except OSError as error:
        raise ArcFlowError(_cannot_write(path, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(folder: Path, path: Path) -> None:
    """Rename ``folder`` to ``path``, and remove what stood there: a rename takes the place of an empty folder only."""
    aside: list[Path] = []
    while True:
        try:
            os.replace(folder, path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        aside.append(Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent)))
        with suppress(FileNotFoundError):  # Another writer was quicker to move it away.
            os.replace(path, aside[-1] / "previous")
    for old in aside:
        shutil.rmtree(old)


def _temporary_sibling(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise ArcFlowError(_cannot_write(path, error)) from error
    return Path(name)


def _apply_umask(path: Path) -> None:
    """Give ``path`` the mode a plain ``open`` would have given it (mkstemp makes it private)."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _cannot_write(path: Path, error: OSError) -> str:
    return f"cannot write {path}: {error.strerror or error}; choose a path that you may write to and that has room"
