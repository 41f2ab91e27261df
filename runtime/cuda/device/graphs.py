"""Points on the stream, and work that is done again and again at the same addresses as one CUDA graph a key."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from foundation.errors import ArcFlowError
from runtime.cuda.device.driver import Driver
from runtime.cuda.device.staging import PinnedMemory, flat_bytes, rounded
from runtime.cuda.errors import CaptureRefusedError

MOST = 32
"""Graphs that are cached: they take memory. The one that was used longest ago makes room."""

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on allocating.

_EXTERNAL = 1  # CU_EVENT_RECORD_EXTERNAL: in a recording, a node that each replay passes.


class DeviceEvent:
    """A point on the stream. Made inside a recording it stands for the latest replay of it."""

    def __init__(self, driver: Driver, handle: Any, pool: list[Any]) -> None:
        self._driver = driver
        self.handle = handle
        self._pool = pool

    def seconds_since(self, earlier: Any) -> float:
        """Time on the device from ``earlier`` to this point, about 0.5 us exact; waits until both are passed.

        Raises DeviceError where one of them was never put on the stream, or work on the GPU failed.
        """
        for event in (earlier, self):
            self._driver("waiting for a point on the stream", "cuEventSynchronize", event.handle)
        milliseconds = self._driver("measuring time", "cuEventElapsedTime", earlier.handle, self.handle)
        return float(milliseconds) / 1e3

    def __del__(self) -> None:
        self._pool.append(self.handle)


@dataclass
class _Needs:
    """What a stretch of work used in its first run: nothing can be allocated while it is recorded."""

    uploaded: int = 0
    marks: int = 0


@dataclass
class _Recording:
    graph: Any
    memory: PinnedMemory | None
    """What the graph copies to the device."""
    events: list[DeviceEvent]


class Recordings:
    """The graphs of one stream. See :meth:`runtime.cuda.interface.Device.replay`.

    The first run is an ordinary one, so that all that libraries prepare at a first call is in place when the second
    is recorded.
    """

    def __init__(self, driver: Driver, stream: Any) -> None:
        self._driver = driver
        self._stream = stream
        self._events: list[Any] = []
        """Handles of points that are in no use: none may be made while a graph is recorded."""
        self._known: dict[Hashable, _Needs | _Recording] = {}  # The key that was used last stands last.
        self._counting: _Needs | None = None
        self._open: _Recording | None = None
        self._filled = 0
        self.refusals: dict[Hashable, str] = {}

    @property
    def recording(self) -> bool:
        """Whether what is put on the stream now goes into a graph and is not done."""
        return self._open is not None

    def refuse(self, what: str) -> None:
        """Raise CaptureRefusedError where a graph is recorded, because ``what`` cannot be a part of it."""
        if self._open is not None:
            raise CaptureRefusedError(f"a CUDA graph cannot hold it: {what}")

    def replay(self, key: Hashable, work: Callable[[], None]) -> str:
        """Do ``work``: "eager", "recorded" or "replayed". Raises what ``work`` raises, and DeviceError."""
        if self._open is not None or self._counting is not None or key in self.refusals:
            work()  # Inside other work it is a part of that.
            return "eager"
        known = self._known.pop(key, None)
        if known is None:
            self._counting = needs = _Needs()
            try:
                work()
            finally:
                self._counting = None
            self._cache(key, needs)
            return "eager"
        done = "replayed"
        if isinstance(known, _Needs):
            try:
                known, done = self._record(known, work), "recorded"
            except CaptureRefusedError as error:
                self.refusals[key] = str(error)
                work()
                return "eager"
        self._cache(key, known)
        self._driver("replaying a CUDA graph", "cuGraphLaunch", known.graph, self._stream)
        return done

    def mark(self) -> DeviceEvent:
        """The present end of the stream. Raises DeviceError."""
        if self._counting is not None:
            self._counting.marks += 1
        if not self._events:
            self._reserve(1)
        event = DeviceEvent(self._driver, self._events.pop(), self._events)
        if self._open is None:
            self._driver("recording an event", "cuEventRecord", event.handle, self._stream)
        else:
            self._driver("recording an event", "cuEventRecordWithFlags", event.handle, self._stream, _EXTERNAL)
            self._open.events.append(event)
        return event

    def uploads(self, size: int) -> None:
        """Note that the work copies so many bytes to the device."""
        if self._counting is not None:
            self._counting.uploaded += rounded(size)

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Record a copy of what ``values`` are now. Raises CaptureRefusedError."""
        source = flat_bytes(values)
        memory = None if self._open is None else self._open.memory
        if memory is None or self._filled + source.size > memory.size:
            raise CaptureRefusedError("a CUDA graph cannot hold it: more is copied to the GPU than in the first run")
        memory.bytes[self._filled : self._filled + source.size] = source
        place = memory.address + self._filled
        self._filled += rounded(source.size)
        self._driver("copying to the GPU", "cuMemcpyHtoDAsync", address, place, source.size, self._stream)

    def forget(self) -> None:
        """Drop all graphs, and what is known of keys; waits for the stream. Raises DeviceError."""
        self.refuse("dropping recordings")
        if any(isinstance(one, _Recording) for one in self._known.values()):
            self._driver("waiting for the GPU", "cuStreamSynchronize", self._stream)
        self._drop()

    def close(self) -> None:
        """Drop all graphs and points; the stream must be idle."""
        self._drop()
        while self._events:
            self._driver.quietly("cuEventDestroy", self._events.pop())

    def _reserve(self, count: int) -> None:
        while len(self._events) < count:
            self._events.append(self._driver("making an event", "cuEventCreate", 0))

    def _drop(self) -> None:
        dropped = list(self._known.values())
        self._known.clear()
        for one in dropped:
            self._destroy(one)

    def _record(self, needs: _Needs, work: Callable[[], None]) -> _Recording:
        memory = PinnedMemory(self._driver, needs.uploaded) if needs.uploaded else None
        self._reserve(needs.marks)
        recording = _Recording(None, memory, [])
        try:
            graph = self._capture(recording, work)
            try:
                recording.graph = self._driver("making a CUDA graph", "cuGraphInstantiate", graph, 0)
            finally:
                self._driver.quietly("cuGraphDestroy", graph)
        except ArcFlowError as error:  # Of whatever kind: should it be the work's own, the run without a graph says so.
            self._destroy(recording)
            raise error if isinstance(error, CaptureRefusedError) else CaptureRefusedError(str(error)) from error
        except BaseException:
            self._destroy(recording)
            raise
        return recording

    def _capture(self, recording: _Recording, work: Callable[[], None]) -> Any:
        """The graph of ``work``. The stream does not record any more when this returns or raises."""
        mode = self._driver.api.CUstreamCaptureMode(_THREAD_LOCAL)
        self._driver("recording a CUDA graph", "cuStreamBeginCapture", self._stream, mode)
        self._open, self._filled = recording, 0
        try:
            work()
        except BaseException:
            self._open = None
            status, graph = self._driver.api.cuStreamEndCapture(self._stream)
            if int(status) == 0:
                self._driver.quietly("cuGraphDestroy", graph)
            raise
        self._open = None
        return self._driver("recording a CUDA graph", "cuStreamEndCapture", self._stream)

    def _cache(self, key: Hashable, state: _Needs | _Recording) -> None:
        self._known[key] = state
        while len(self._known) > MOST:
            oldest = self._known.pop(next(iter(self._known)))
            if isinstance(oldest, _Recording):
                self._driver("waiting for the GPU", "cuStreamSynchronize", self._stream)
            self._destroy(oldest)

    def _destroy(self, state: _Needs | _Recording) -> None:
        if not isinstance(state, _Recording):
            return
        if state.graph is not None:
            self._driver.quietly("cuGraphExecDestroy", state.graph)
        if state.memory is not None:
            state.memory.free()
        state.events.clear()
