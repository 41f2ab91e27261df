"""Points on the stream, and the time between them."""

from __future__ import annotations

from typing import Any

from runtime.cuda.device.driver import Driver

_EXTERNAL = 1  # CU_EVENT_RECORD_EXTERNAL: in a recording, a node that each replay passes.


class DeviceEvent:
    """A point on the stream. Made inside a recording it stands for the latest replay of it."""

    def __init__(self, driver: Driver, handle: Any, pool: list[Any]) -> None:
        self._driver = driver
        self._handle = handle
        self._pool = pool

    def seconds_since(self, earlier: Any) -> float:
        """Time on the device from ``earlier`` to this point, about 0.5 us exact; waits until both are passed.

        Raises DeviceError where one of them was never put on the stream, or work on the GPU failed.
        """
        for event in (earlier, self):
            self._driver("waiting for a point on the stream", "cuEventSynchronize", event._handle)
        milliseconds = self._driver("measuring time", "cuEventElapsedTime", earlier._handle, self._handle)
        return float(milliseconds) / 1e3

    def __del__(self) -> None:
        self._pool.append(self._handle)


class Events:
    """Makes points on one stream; their handles are used again."""

    def __init__(self, driver: Driver, stream: Any) -> None:
        self._driver = driver
        self._stream = stream
        self._pool: list[Any] = []

    def reserve(self, count: int) -> None:
        """Have that many handles at hand, since none may be made while a graph is recorded. Raises DeviceError."""
        while len(self._pool) < count:
            self._pool.append(self._driver("making an event", "cuEventCreate", 0))

    def mark(self, *, recording: bool) -> DeviceEvent:
        """The present end of the stream. Raises DeviceError."""
        if not recording:
            self.reserve(1)
        handle = self._pool.pop() if self._pool else self._driver("making an event", "cuEventCreate", 0)
        event = DeviceEvent(self._driver, handle, self._pool)
        if recording:
            self._driver("recording an event", "cuEventRecordWithFlags", handle, self._stream, _EXTERNAL)
        else:
            self._driver("recording an event", "cuEventRecord", handle, self._stream)
        return event

    def close(self) -> None:
        """Destroy what is not in use."""
        while self._pool:
            self._driver.quietly("cuEventDestroy", self._pool.pop())
