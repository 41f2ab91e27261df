"""Kernels that TensorRT for RTX compiles on the GPU where it runs, cached beside the bundle for the next start.

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

_MOST = 1 << 30
"""Bytes: a file beyond this is not read."""


class RuntimeCache:
    """The kernels of all plans of one bundle; with the data-centre flavour, which compiles none, it does nothing."""

    def __init__(self, bundle: Path, toolkit: Toolkit, capability: str) -> None:
        """bundle: its folder, which holds nothing but what its manifest lists: the kernels lie beside it."""
        self._path = bundle.parent / f".{bundle.name}.{toolkit.version}.{capability}.kernels"
        self._toolkit = toolkit
        self._cache: Any = None
        self._saved = b""
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

    def save(self) -> None:
        """Write what was compiled since it was last written."""
        if self._cache is None or not self._grown:
            return
        self._grown = False
        content = bytes(memoryview(self._cache.serialize()))
        if content != self._saved and self._write(content):
            self._saved = content

    def close(self) -> None:
        self.save()
        self._cache = None

    def _load(self, config: Any) -> Any:
        cache = config.create_runtime_cache()
        content = self._read()
        if cache is not None and content:
            with listening(self._toolkit.logger):  # It may be of another driver: then it is compiled anew.
                if cache.deserialize(content):
                    self._saved = content
        return cache

    def _read(self) -> bytes | None:
        """What :meth:`_write` wrote; None where there is nothing, or not from this machine's key."""
        try:
            if self._path.stat().st_size > _MOST:
                return None
            header, _, content = self._path.read_bytes().partition(b"\n")
            expected = _header(content)
        except (OSError, ArcFlowError):
            return None
        return content if hmac.compare_digest(header, expected) else None

    def _write(self, content: bytes) -> bool:
        """Write ``content`` whole and sealed; False where that is not possible, which costs time and nothing else."""
        try:
            with atomic_file(self._path) as temporary:
                temporary.write_bytes(_header(content) + b"\n" + content)
        except (OSError, ArcFlowError):  # A folder that is not ours to write in, or a key that must not be used.
            return False
        return True


def _header(content: bytes) -> bytes:
    return b"arcflow kernels 1 " + seal({"runtime cache": hashlib.sha256(content).hexdigest()}).encode()
