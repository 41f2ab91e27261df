"""What a measurement must know of a GPU: what it is and could do, and how much of its memory is in use.

Asked of the driver, beside whatever runs there: TensorRT and ONNX Runtime are looked at in the same way.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from runtime.cuda.device.driver import Driver, describe_device, find_device, load_driver
from runtime.cuda.errors import DeviceError
from runtime.cuda.interface import DeviceInfo

_INTERVAL = 2e-3
_DOUBLE_RATE = 2  # Memory moves data at both edges of its clock.


@dataclass(frozen=True)
class Gpu:
    """A GPU. clock: greatest of its multiprocessors, in Hz. bandwidth: of its memory, in bytes a second."""

    info: DeviceInfo
    clock: float
    bandwidth: float


def find_gpu(ordinal: int = 0, driver: Driver | None = None) -> Gpu:
    """The GPU of that number; nothing is allocated on it. Raises DeviceError where there is none."""
    driver = load_driver() if driver is None else driver
    device = find_device(driver, ordinal)

    def attribute(name: str) -> int:
        kind = getattr(driver.api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(driver(f"asking GPU {ordinal} for its clocks", "cuDeviceGetAttribute", kind, device))

    return Gpu(
        info=describe_device(driver, ordinal),
        clock=attribute("CLOCK_RATE") * 1e3,
        bandwidth=_DOUBLE_RATE * attribute("MEMORY_CLOCK_RATE") * 1e3 * attribute("GLOBAL_MEMORY_BUS_WIDTH") / 8,
    )


class MemoryWatch:
    """The most memory of a GPU in use above what it was at the start, looked at every 2 ms by a thread of its own.

    It sees all programs on that GPU, and all of ours: weights, scratch memory, CUDA's own. Use it as a context::

        with MemoryWatch(0) as memory:
            ...
            memory.peak()
    """

    def __init__(self, ordinal: int = 0, driver: Driver | None = None) -> None:
        """Begin at what is in use now. Raises DeviceError."""
        self._driver = load_driver() if driver is None else driver
        self._device = find_device(self._driver, ordinal)
        self._context: Any = self._driver("opening the GPU", "cuDevicePrimaryCtxRetain", self._device)
        self._before = self._most = self._in_use()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="gpu-memory", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()
        self._driver.quietly("cuDevicePrimaryCtxRelease", self._device)

    def rest(self) -> None:
        """Look no more by itself, so that nothing runs beside what is timed."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def peak(self) -> int:
        """Bytes, at the most of all looks, this one among them. Raises DeviceError."""
        self._most = max(self._most, self._in_use())
        return max(self._most - self._before, 0)

    def _look(self) -> None:
        while not self._stop.wait(_INTERVAL):
            try:
                self._most = max(self._most, self._in_use())
            except DeviceError:  # The GPU is lost; what is measured fails by itself, and says why.
                return

    def _in_use(self) -> int:
        what = "asking for the GPU's free memory"
        self._driver(what, "cuCtxPushCurrent", self._context)
        try:
            free, total = self._driver(what, "cuMemGetInfo")
        finally:
            self._driver.quietly("cuCtxPopCurrent")
        return int(total) - int(free)
