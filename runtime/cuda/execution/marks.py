"""How long the stages took on the device: points on the stream around each, read when it has passed them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from runtime.cuda.interface import Device, Event
from runtime.errors import BackendError
from runtime.timing import Span, Stopwatch


@dataclass(frozen=True)
class Marked:
    stage: str
    start: Event
    end: Event


class Marks:
    """The stages of a session. A CUDA graph passes the points of the run that was recorded anew at each replay."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._open: list[Marked] = []
        self._recorded: dict[Hashable, tuple[Marked, ...]] = {}
        self._origin: Event | None = None
        self._began = 0.0

    def begin(self) -> None:
        """What was marked and not read is dropped; times are counted from here."""
        self._open = []
        self._began = time.perf_counter()
        self._origin = self._device.mark()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What the block puts on the stream is that stage."""
        start = self._device.mark()
        yield
        self._open.append(Marked(name, start, self._device.mark()))

    def replay(self, key: Hashable, work: Callable[[], None]) -> str:
        """:meth:`Device.replay`, with the stages inside ``work``."""
        outer, inner = self._open, list[Marked]()

        def once() -> None:
            inner.clear()  # A recording that is rejected has begun the work already.
            work()

        self._open = inner
        try:
            done = self._device.replay(key, once)
        finally:
            self._open = outer
        if done == "replayed":
            outer += self._recorded.get(key, ())
        else:
            self._recorded[key] = tuple(inner)
            outer += inner
        return done

    def forget(self) -> None:
        self._device.forget()
        self._recorded.clear()

    def read(self, clock: Stopwatch) -> None:
        """Add the stages since :meth:`begin`, or since they were last read, to ``clock``; waits for the stream.

        A point that the device cannot time is left out: the images are there all the same.
        """
        begun = self._began - clock.origin
        for marked in self._open:
            try:
                start = marked.start.seconds_since(self._origin) if self._origin is not None else 0.0
                end = start + marked.end.seconds_since(marked.start)
            except BackendError:
                continue
            clock.add(Span(marked.stage, begun + start, begun + end))
        self._open = []
