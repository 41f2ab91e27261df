"""Pinned main memory, which the GPU copies from and to by itself, and the way of small arrays through it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.cuda.device.driver import Driver
from runtime.cuda.errors import DeviceError, DeviceMemoryError, mebibytes

CHUNK = 4 << 20
CHUNKS = 4
"""What is written passes through at most so many chunks of so many bytes; more waits for the first of them."""

_APART = 256  # Copies begin at multiples of this.
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING


def rounded(size: int) -> int:
    """``size`` up to the next place where a copy may begin."""
    return -(-size // _APART) * _APART


class PinnedMemory:
    """Pinned memory of ``size`` bytes: its ``address``, and ``bytes``, the same as an array of uint8."""

    def __init__(self, driver: Driver, size: int) -> None:
        self._driver = driver
        self.size = size
        try:
            self.address = int(driver("allocating pinned memory", "cuMemHostAlloc", size, 0))
        except DeviceMemoryError as error:
            raise DeviceMemoryError(
                f"{mebibytes(size)} of pinned main memory cannot be had; close other programs, or raise the limit of "
                "locked memory"
            ) from error
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(self.address))

    def free(self) -> None:
        """Give it back; the GPU must have passed what uses it."""
        self._driver.quietly("cuMemFreeHost", self.address)


class Staging:
    """Arrays on their way to the device and back, over one stream."""

    def __init__(self, driver: Driver, stream: Any) -> None:
        self._driver = driver
        self._stream = stream
        self._chunks: list[tuple[PinnedMemory, Any]] = []  # Each with an event: the GPU has read it.
        self._current = -1
        self._used = CHUNK
        self._back: PinnedMemory | None = None

    def write(self, address: int, values: NDArray[Any]) -> None:
        """Put a copy of ``values`` on its way to ``address``; waits only for the copy before the last few MiB."""
        source = flat_bytes(values)
        done = 0
        while done < source.size:
            if self._used >= CHUNK:
                self._next_chunk()
            memory = self._chunks[self._current][0]
            piece = min(source.size - done, CHUNK - self._used)
            memory.bytes[self._used : self._used + piece] = source[done : done + piece]
            place = memory.address + self._used
            self._driver("copying to the GPU", "cuMemcpyHtoDAsync", address + done, place, piece, self._stream)
            self._used = rounded(self._used + piece)
            done += piece

    def read(self, address: int, values: NDArray[Any]) -> None:
        """Fill the C-contiguous ``values`` from ``address``; waits for the stream. Raises DeviceError."""
        if not (values.flags.c_contiguous and values.flags.writeable):
            raise DeviceError("download needs a C-contiguous array that may be written")
        target = values.reshape(-1).view(np.uint8)
        what = "copying from the GPU"
        if self._back is None:
            self._back = PinnedMemory(self._driver, CHUNK)
        for done in range(0, target.size, CHUNK):
            piece = min(target.size - done, CHUNK)
            self._driver(what, "cuMemcpyDtoHAsync", self._back.address, address + done, piece, self._stream)
            self._driver(what, "cuStreamSynchronize", self._stream)
            target[done : done + piece] = self._back.bytes[:piece]

    def close(self) -> None:
        """Give everything back; the stream must be idle."""
        for memory, event in self._chunks:
            memory.free()
            self._driver.quietly("cuEventDestroy", event)
        self._chunks.clear()
        self._current, self._used = -1, CHUNK
        if self._back is not None:
            self._back.free()
            self._back = None

    def _next_chunk(self) -> None:
        if self._chunks:
            self._driver("recording an event", "cuEventRecord", self._chunks[self._current][1], self._stream)
        following = (self._current + 1) % CHUNKS
        if following == len(self._chunks):
            event = self._driver("making an event", "cuEventCreate", _NO_TIMING)
            self._chunks.append((PinnedMemory(self._driver, CHUNK), event))
        else:
            self._driver("copying to the GPU", "cuEventSynchronize", self._chunks[following][1])
        self._current, self._used = following, 0


def flat_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of an array in C order; a view where it lies so."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
