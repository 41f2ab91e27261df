"""Timing on the device: many calls between two events, behind work that keeps the stream busy, and the median of many.

A kernel of some microseconds cannot be timed by itself: the host needs longer to launch it. So a list of calls is
recorded as one CUDA graph and the graph is timed, with a replay of it put before the first event, so that the host is
ahead when the clock starts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foundation.quantiles import percentile

if TYPE_CHECKING:
    from runtime.cuda.interface import Device

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, least, and 99th percentile of ``rounds``; how: "replayed", "eager", "compiled"..."""

    median: float
    least: float
    p99: float
    rounds: int
    how: str

    def figures(self) -> dict[str, Any]:
        """As fields of a record, in microseconds."""
        return {
            "median_us": round(self.median * 1e6, 3),
            "least_us": round(self.least * 1e6, 3),
            "p99_us": round(self.p99 * 1e6, 3),
            "rounds": self.rounds,
            "how": self.how,
        }


def summary(seconds: Sequence[float], calls: int, how: str) -> Timing:
    """Timing of ``calls`` calls that together took ``seconds``, one value a round."""
    each = [value / calls for value in seconds]
    return Timing(statistics.median(each), min(each), percentile(each, 0.99), len(each), how)


def on_device(device: Device, key: Hashable, calls: Sequence[Call], rounds: int) -> Timing:
    """Time calls that put work on the device's stream; each of them once a round, in order."""

    def work() -> None:
        for call in calls:
            call()

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
    return summary(seconds, len(calls), how)


def in_torch(calls: Sequence[Call], rounds: int, how: str, warm_up: int = 3) -> Timing:
    """Time calls of torch, each once a round: by events where there is a GPU, by the clock where there is none."""
    import torch

    for _ in range(warm_up):
        for call in calls:
            call()
    if not torch.cuda.is_available():
        return _by_clock(calls, rounds, how)
    torch.cuda.synchronize()
    seconds = []
    for _ in range(rounds):
        for call in calls[:4]:
            call()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for call in calls:
            call()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return summary(seconds, len(calls), how)


def in_torch_graph(calls: Sequence[Call], rounds: int, how: str) -> Timing:
    """The same as one CUDA graph of torch, so that no launch of the host's is counted. Needs a GPU."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    timing = in_torch([graph.replay], rounds, how)
    count = len(calls)
    return Timing(timing.median / count, timing.least / count, timing.p99 / count, timing.rounds, how)


def calls_for(seconds: float, each: float, least: int, most: int = 400) -> int:
    """How many calls of about ``each`` seconds take at least ``seconds``, within bounds."""
    return max(least, min(most, int(seconds / max(each, 1e-9)) + 1))


def _by_clock(calls: Sequence[Call], rounds: int, how: str) -> Timing:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for call in calls:
            call()
        seconds.append(time.perf_counter() - start)
    return summary(seconds, len(calls), how)
