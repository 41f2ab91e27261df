"""Kernels that TensorRT for RTX compiles on the GPU where it runs, kept beside the bundle for the next start.

The file holds machine code, so it is sealed with this machine's key, as plans are; a file without our seal is not
read. TensorRT itself checks that it fits the GPU, the driver and its own version. Built, not yet run on a GPU.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any

from engines.tensorrt import RTX, Toolkit, listening
from engines.trust import seal
from foundation.errors import ArcFlowError
from foundation.files import atomic_file

_HEADER = b"arcflow kernels 1 "
_MOST = 1 << 30
"""Bytes: a file beyond this is not read."""


def cache_path(bundle: Path, toolkit: Toolkit, capability: str) -> Path:
    """Where the kernels of a bundle lie: beside its folder, which holds nothing but what its manifest lists."""
    return bundle.parent / f".{bundle.name}.{toolkit.version}.{capability}.kernels"


def read_sealed(path: Path) -> bytes | None:
    """What :func:`write_sealed` wrote; None where there is nothing, or not from this machine's key."""
    try:
        if path.stat().st_size > _MOST:
            return None
        header, _, content = path.read_bytes().partition(b"\n")
        expected = _HEADER + _seal(content).encode()
    except (OSError, ArcFlowError):
        return None
    return content if hmac.compare_digest(header, expected) else None


def write_sealed(path: Path, content: bytes) -> bool:
    """Write ``content`` whole and sealed; False where that is not possible, which costs time and nothing else."""
    try:
        header = _HEADER + _seal(content).encode() + b"\n"
        with atomic_file(path) as temporary:
            temporary.write_bytes(header + content)
    except (OSError, ArcFlowError):  # A folder that is not ours to write in, or a key that must not be used.
        return False
    return True


class RuntimeCache:
    """The kernels of all plans of one bundle; with the data-centre flavour, which compiles none, it does nothing."""

    def __init__(self, path: Path, toolkit: Toolkit) -> None:
        self._path = path
        self._toolkit = toolkit
        self._cache: Any = None
        self._kept = b""
        self._grown = False

    def make_context(self, trt_engine: Any) -> tuple[Any, Any]:
        """An execution context whose memory its owner provides, and what must live as long; None where it fails.

        Kernels for the context's own shapes are compiled at once: what is recorded in a CUDA graph stays as it is.
        """
        trt = self._toolkit.trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._toolkit.flavour != RTX:
            return trt_engine.create_execution_context(strategy), None
        config = trt_engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if self._cache is None:
            self._cache = self._load(config)
        if self._cache is not None:
            config.set_runtime_cache(self._cache)
        self._grown = True
        return trt_engine.create_execution_context(config), config

    def save(self) -> bool:
        """Write what was compiled since it was last written; whether something was written."""
        if self._cache is None or not self._grown:
            return False
        self._grown = False
        content = bytes(memoryview(self._cache.serialize()))
        if content == self._kept or not write_sealed(self._path, content):
            return False
        self._kept = content
        return True

    def close(self) -> None:
        """Save, and let go of what TensorRT holds."""
        self.save()
        self._cache = None

    def _load(self, config: Any) -> Any:
        cache = config.create_runtime_cache()
        content = read_sealed(self._path)
        if cache is not None and content:
            with listening(self._toolkit.logger):  # It may be of another driver: then it is compiled anew.
                if cache.deserialize(content):
                    self._kept = content
        return cache


def _seal(content: bytes) -> str:
    return seal({"runtime cache": hashlib.sha256(content).hexdigest()})
