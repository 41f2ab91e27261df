"""A `Device` of main memory, for the order of work where there is no GPU. It says nothing about speed.

What is put on its stream waits in a queue until something waits for it, as on a GPU: work that forgets to copy its
input, or reads before it is done, goes wrong here too. Addresses are those of main memory; each access must lie inside
one allocation. Fresh memory is full of NaN. The kernels are the native core's own source, compiled for the host, or
numpy where there is no compiler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from runtime.cuda.device.launch import TYPES, Kernels
from runtime.cuda.errors import CaptureRefusedError, DeviceError, memory_error
from runtime.cuda.interface import Advance, DeviceInfo, Unpack
from tests.runtime.cuda import host_library
from tests.runtime.cuda.numpy_kernels import NumpyKernels

ALIGNMENT = 256
Work = tuple[str, Callable[[], None]]


class HostKernels(Kernels):
    """The native core's kernels, compiled for the host."""

    def launch(self, name: str, blocks: int, threads: int, shared_bytes: int, arguments: int) -> None:
        status = host_library.host_kernels().arcflow_host_launch(
            name.encode(), blocks, threads, shared_bytes, arguments
        )
        if status:
            raise DeviceError(f"launching {name}: error {status}")


class StandInEvent:
    """A point on the stream; its time is that of the host when the queue passes it."""

    def __init__(self, device: StandInDevice) -> None:
        self._device = device
        self.passed = 0.0

    def seconds_since(self, earlier: Any) -> float:
        """Time between two points; waits for this one."""
        self._device.synchronize()
        if not self.passed or not earlier.passed:
            raise DeviceError("an event that the stream has not passed")
        return float(self.passed - earlier.passed)


class StandInDevice:
    """See `runtime.cuda.interface.Device`; and for tests:

    enqueue: puts any action on the stream, for engines that tests make. view: an array over device memory.
    log: what has run so far, in order. waits: how often the host waited for the stream. refuse: set it to a reason,
    and recordings are rejected. refusals: by key.
    """

    def __init__(
        self,
        memory: int = 256 << 20,
        *,
        capability: str = "sm80",
        kernels: Literal["auto", "source", "numpy"] = "auto",
    ) -> None:
        self.info = DeviceInfo("stand-in", capability, "13.0", memory, 50 << 20, 1)
        self.stream = 0x5A
        self.log: list[str] = []
        self.waits = 0
        self.peak = 0
        self.refuse = ""
        self.refusals: dict[Hashable, str] = {}
        self._pool = np.empty(memory + ALIGNMENT, dtype=np.uint8)
        self._base = -(-self._pool.ctypes.data // ALIGNMENT) * ALIGNMENT
        self._blocks: dict[int, int] = {}
        self._queue: list[Work] = []
        self._recording: list[Work] | None = None
        self._recordings: dict[Hashable, list[Work] | None] = {}
        self._closed = False
        if kernels == "auto":
            kernels = "source" if host_library.compiler() else "numpy"
        self._kernels: Any = HostKernels() if kernels == "source" else NumpyKernels(self._array)

    # Memory

    def allocate(self, size: int, what: str) -> int:
        """First fit; raises DeviceMemoryError."""
        self._cannot_be_recorded("allocating memory")
        place = self._base
        for address in sorted(self._blocks):
            if address - place >= size:
                break
            place = -(-(address + self._blocks[address]) // ALIGNMENT) * ALIGNMENT
        if place + size > self._base + self.info.memory:
            raise memory_error(what, size, self.info.memory - self.memory_used(), self.info.memory)
        self._blocks[place] = max(size, 1)
        self.peak = max(self.peak, self.memory_used())
        self._array(place, (size,), np.uint8).fill(0xFF)
        return place

    def free(self, address: int) -> None:
        """Runs what is on the stream first."""
        self._cannot_be_recorded("freeing memory")
        if address not in self._blocks:
            raise DeviceError(f"nothing was allocated at {address:#x}, or it was freed before")
        self._drain()
        del self._blocks[address]

    def memory_used(self) -> int:
        """Bytes that are allocated now."""
        return sum(self._blocks.values())

    def view(self, address: int, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An array over device memory, for the actions of :meth:`enqueue`; it does not wait."""
        return self._array(address, tuple(shape), dtype)

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Copies ``values`` at once; they reach the device when the queue runs."""
        kept = np.array(values, order="C")
        target = self._array(address, kept.shape, kept.dtype)
        self.enqueue("upload", lambda: np.copyto(target, kept))

    def download(self, address: int, values: NDArray[Any]) -> None:
        """Waits."""
        if not values.flags.c_contiguous or not values.flags.writeable:
            raise DeviceError("download needs a C-contiguous array that may be written")
        self.synchronize()
        np.copyto(values, self._array(address, values.shape, values.dtype))

    def copy(self, target: int, source: int, size: int) -> None:
        """Bytes on the device."""
        to, of = self._array(target, (size,), np.uint8), self._array(source, (size,), np.uint8)
        self.enqueue("copy", lambda: np.copyto(to, of))

    # Kernels

    def advance(self, step: Advance) -> None:
        """One step of the solver."""
        value = TYPES[step.dtype][1] if step.dtype in TYPES else 1
        for address, count, size in (
            (step.means, step.tokens * step.modes * step.channels, value),
            (step.logweights, step.tokens * step.modes * step.positions, value),
            (step.loggammas, step.tokens * (step.modes - 1) * step.positions, value),
            (step.x, step.tokens * step.channels, 4),
            (step.out, step.tokens * step.channels, 4),
        ):
            if count:
                self._array(address, (count * size,), np.uint8)
        self.enqueue("advance", lambda: self._kernels.advance(step))

    def normal(self, seed: int, count: int, out: int) -> None:
        """Noise."""
        self._array(out, (count,), np.float32)
        self.enqueue("normal", lambda: self._kernels.normal(seed, count, out))

    def unpack(self, work: Unpack) -> None:
        """Tokens to latents."""
        for address in (work.tokens, work.latents):
            self._array(address, (work.values,), np.float32)
        self.enqueue("unpack", lambda: self._kernels.unpack(work))

    def to_rgb8(self, images: int, pixels: int, shape: tuple[int, int, int]) -> None:
        """Images to bytes."""
        batch, height, width = shape
        self._array(images, (batch, 3, height, width), np.float32)
        self._array(pixels, (batch, height, width, 3), np.uint8)
        self.enqueue("to_rgb8", lambda: self._kernels.to_rgb8(images, pixels, shape))

    def find_nonfinite(self, values: int, count: int, found: int) -> None:
        """Whether a value is infinite or NaN."""
        self._array(values, (count,), np.float32)
        flag = self._array(found, (1,), np.uint32)

        def look() -> None:
            flag[0] = 0
            self._kernels.find_nonfinite(values, count, found)

        self.enqueue("find_nonfinite", look)

    # Order

    def enqueue(self, name: str, action: Callable[[], None]) -> None:
        """Put an action on the stream; ``name`` goes into the log when it runs."""
        if self._closed:
            raise DeviceError("the device is closed")
        (self._queue if self._recording is None else self._recording).append((name, action))

    def replay(self, key: Hashable, work: Callable[[], None]) -> str:
        """As a GPU does it, by lists of actions."""
        if self._recording is not None or key in self.refusals:
            work()
            return "eager"
        if key not in self._recordings:
            work()
            self._recordings[key] = None
            return "eager"
        recorded, done = self._recordings[key], "replayed"
        if recorded is None:
            self._recording, done = [], "recorded"
            try:
                self._cannot_be_recorded(self.refuse)
                work()
                recorded = self._recordings[key] = self._recording
            except CaptureRefusedError as error:
                self.refusals[key] = str(error)
            finally:
                self._recording = None
            if recorded is None:
                work()
                return "eager"
        self._queue.append((done, lambda: None))
        self._queue.extend(recorded)
        return done

    def forget(self) -> None:
        """Drop every recording."""
        self._drain()
        self._recordings.clear()

    def mark(self) -> StandInEvent:
        """A point that is passed when the queue runs, and anew at each replay."""
        event = StandInEvent(self)

        def stamp() -> None:
            event.passed = time.perf_counter()

        self.enqueue("mark", stamp)
        return event

    def synchronize(self) -> None:
        """Run what waits."""
        self._cannot_be_recorded("waiting for the GPU")
        self.waits += 1
        self._drain()

    def close(self) -> None:
        """Everything is gone; may be called twice."""
        self._queue.clear()
        self._recordings.clear()
        self._blocks.clear()
        self._closed = True

    def _drain(self) -> None:
        queue, self._queue = self._queue, []
        for name, action in queue:
            self.log.append(name)
            action()

    def _cannot_be_recorded(self, what: str) -> None:
        if self._recording is not None and what:
            raise CaptureRefusedError(f"a CUDA graph cannot hold it: {what}")

    def _array(self, address: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        if not any(start <= address and address + size <= start + held for start, held in self._blocks.items()):
            raise DeviceError(f"{size} bytes at {address:#x} do not lie inside one allocation")
        offset = address - self._pool.ctypes.data
        return self._pool[offset : offset + size].view(kind).reshape(shape)
