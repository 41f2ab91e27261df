"""Timing on the device: many calls between two events, behind work that keeps the stream busy.

A kernel of some microseconds cannot be timed by itself: the host needs longer to launch it. So a list of calls is
recorded as one CUDA graph and the graph is timed, with a replay of it put before the first event, so that the host is
ahead when the clock starts.
"""

from __future__ import annotations

import itertools
import timeit
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from foundation.measuring import Timing, timing

if TYPE_CHECKING:
    from runtime.cuda.interface import Device

Call = Callable[[], object]
GRAPH = "graph"
"""How a call is run that is one CUDA graph."""


@dataclass(frozen=True)
class Timed(Timing):
    """A timing that says how it ran: "replayed", "eager", "compiled", ..."""

    how: str


def on_device(device: Device, key: Hashable, calls: Sequence[Call], rounds: int) -> Timed:
    """Time calls that put work on the device's stream; each of them once a round, in order."""
    work = _together(calls)
    for _ in range(3):  # By itself, recorded, replayed.
        how = device.replay(key, work)
    device.synchronize()
    seconds = []
    for _ in range(rounds):
        device.replay(key, work)
        start = device.mark()
        device.replay(key, work)
        end = device.mark()
        device.synchronize()
        seconds.append(end.seconds_since(start))
    return _timed(seconds, len(calls), how)


def in_torch(calls: Sequence[Call], rounds: int, how: str, graph: bool = False) -> Timed:
    """Time calls of torch, each once a round.

    graph: as one CUDA graph, so that no launch of the host's is counted. Raises RuntimeError where there can be none.
    """
    work = _together(calls)
    if not graph:
        return _timed(seconds_of(work, rounds), len(calls), how)
    with stream(None):
        replay, answer = recorded(work)
        if answer != GRAPH:
            raise RuntimeError(answer)
        return _timed(seconds_of(replay, rounds), len(calls), f"{how}, {GRAPH}")


def seconds_of(call: Call, rounds: int) -> Sequence[float]:
    """Seconds of each of ``rounds`` calls one after the other, by the GPU's clock; two before are not counted."""
    import torch

    for _ in range(2):
        call()
    if not torch.cuda.is_available():
        return timeit.repeat(call, number=1, repeat=rounds)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]


def recorded(call: Callable[[], Any]) -> tuple[Callable[[], Any], str]:
    """The call as one CUDA graph on this stream, whose result is the same memory each time; and how it is run.

    What cannot be recorded, and everything on a CPU, stays as it is: "eager", with the reason.
    """
    import torch

    if not torch.cuda.is_available():
        return call, "eager"
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            result = call()
    except RuntimeError as error:
        torch.cuda.synchronize()
        return call, f"eager, not recorded: {' '.join(str(error).split())[:200]}"

    def replay() -> Any:
        graph.replay()
        return result

    return replay, GRAPH


@contextmanager
def stream(device: Device | None) -> Iterator[None]:
    """In the block torch works on the device's stream, or one of its own; on a CPU there is none."""
    import torch

    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.synchronize()
    taken = torch.cuda.Stream() if device is None else torch.cuda.ExternalStream(device.stream)
    with torch.cuda.stream(taken):
        yield
    torch.cuda.synchronize()


def _timed(seconds: Sequence[float], calls: int, how: str) -> Timed:
    return Timed(**asdict(timing(seconds, calls)), how=how)


def _together(calls: Sequence[Call]) -> Callable[[], None]:
    def work() -> None:
        for call in calls:
            call()

    return work
