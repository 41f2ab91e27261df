"""The native core's CUDA kernels as code for one GPU: compiled once a machine, then taken from the user's cache."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from foundation.errors import ArcFlowError
from foundation.files import atomic_file
from runtime.cuda.device import nvrtc
from runtime.cuda.errors import DeviceError

ENVIRONMENT = "ARCFLOW_CACHE"
"""Environment variable that names another folder for what can be made again; "" for none."""

NATIVE = Path(__file__).parents[2] / "native"
SOURCE = "cuda/arcflow_kernels.cu"
HEADERS = ("core/numerics/formula.hpp", "cuda/device.cuh", "cuda/solver.cuh", "cuda/elements.cuh")
"""What the source includes, by the names it uses; both lie in the source tree and in the installed package."""

_DIGEST_BYTES = 32


def kernel_image(capability: int) -> bytes:
    """The kernels for a GPU of that compute capability (90 for 9.0), as cuModuleLoadData takes them.

    Taken from the cache where source, compiler and options are the same, and where there is no compiler, of any; a
    damaged file there, or a folder that others may write to, is passed over. Raises DeviceError where they cannot be
    compiled.
    """
    return cached_image(SOURCE, *sources(), capability)


def cached_image(name: str, source: bytes, headers: Mapping[str, bytes], capability: int) -> bytes:
    """Any CUDA C++ as :func:`kernel_image` gives the kernels. name: of the source, for messages; headers: by name."""
    folder, key = cache_folder(), _key(name, source, headers, capability)
    try:
        _, (major, minor) = nvrtc.compiler()
    except DeviceError:
        # What lies in the cache for these sources was compiled elsewhere.
        found = sorted(folder.glob(f"{key}-*.bin")) if folder else []
        if sent := next(filter(None, map(_read, found)), None):
            return sent
        raise
    path = folder / f"{key}-{major}.{minor}.bin" if folder else None
    if path and (cached := _read(path)):
        return cached
    image = nvrtc.compile_image(Path(name).name, source, headers, capability)
    if path:
        _write(path, image)
    return image


def sources() -> tuple[bytes, Mapping[str, bytes]]:
    """The kernels' source, and its headers by name. Raises DeviceError where the installation lacks them."""
    try:
        return (NATIVE / SOURCE).read_bytes(), {name: (NATIVE / name).read_bytes() for name in HEADERS}
    except OSError as error:
        raise DeviceError(
            f"the kernels' source is not in this installation ({error}): install arcflow again"
        ) from error


def cache_folder() -> Path | None:
    """``$ARCFLOW_CACHE``, else ``arcflow`` in the user's folder of caches, and there ``kernels``; None for no cache."""
    named = os.environ.get(ENVIRONMENT)
    if named is not None:
        return Path(named) / "kernels" if named else None
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "arcflow" / "kernels"
    except RuntimeError:  # A user without a home.
        return None


def _key(name: str, source: bytes, headers: Mapping[str, bytes], capability: int) -> str:
    digest = hashlib.sha256(repr((nvrtc.OPTIONS, capability)).encode())
    for part, text in {name: source, **headers}.items():
        digest.update(f"\0{part}\0{len(text)}\0".encode() + text)
    return f"sm{capability}-{digest.hexdigest()[:32]}"


def _read(path: Path) -> bytes | None:
    """What is cached, or None: not there, damaged, or where another user could have put it (it is code)."""
    try:
        if not (_is_ours(path.parent) and _is_ours(path)):
            return None
        content = path.read_bytes()
    except OSError:
        return None
    image = content[_DIGEST_BYTES:]
    return image if image and hashlib.sha256(image).digest() == content[:_DIGEST_BYTES] else None


def _write(path: Path, image: bytes) -> None:
    """Cache it, if that is possible: whole or not at all."""
    with suppress(OSError, ArcFlowError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_bytes(hashlib.sha256(image).digest() + image)
        path.chmod(0o600)


def _is_ours(path: Path) -> bool:
    owner = getattr(os, "getuid", None)
    if owner is None:  # Windows: the folder is in the user's own profile.
        return True
    found = path.lstat()
    return found.st_uid == owner() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
