"""Two evaluations of a stub network with the solver between, as a CUDA graph: what the host and the gaps cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from foundation.measuring import Timing, timing
from gpu.catalogue import Options
from gpu.device import open_gpu
from gpu.kernels.checks import LEVELS
from gpu.kernels.fields import Size, download, put, reserve
from gpu.kernels.speed import large_copy
from gpu.kernels.stub import Stub, factor, load_stub
from gpu.records import Emit, Printer, guarded

if TYPE_CHECKING:
    from runtime.cuda.interface import Device

TOKENS = (4096, 16384)
GAP_AIM, AIM_TOKENS = 20e-6, 4096
"""Seconds between the end of an evaluation and the beginning of the next one, the solver's step included, and the size
that is held to it: of more tokens the step's bytes alone need longer, 84 MB at 16,384."""

STUB_NANOSECONDS = 200_000
"""How long a stub evaluation keeps the GPU: long enough for the host to be ahead, as with a real network."""

_TOLERANCE = 2e-6


def run(printer: Printer, options: Options) -> None:
    """Measure at the sizes of FLUX and of the largest Qwen-Image image."""
    device = open_gpu()
    stub = load_stub(device)
    rounds = options.pick(100, 5, 5)
    rate = large_copy(printer, device, options.pick(1 << 28, 1 << 28, 1 << 20), rounds)
    for tokens in options.pick(TOKENS, TOKENS[:1], (64,)):
        guarded(printer, f"graph: {tokens} tokens", partial(measure, printer, device, stub, tokens, rounds, rate))
    device.close()


def measure(emit: Emit, device: Device, stub: Stub, tokens: int, rounds: int, rate: float) -> None:
    """Result, host time and gaps of one image's two evaluations: launched one by one, then as a graph.

    rate: bytes a second of a large copy, from which follows the least that the step between can take.
    """
    size = Size(tokens, 1, 16, 64, "float32")
    bound = size.moved / rate
    placed = reserve(device, size)
    times = device.allocate(64, "the stub's times")
    noise = placed.out  # The state is advanced in place; its beginning is kept here and copied back.
    device.normal(1, tokens * size.channels, noise)

    def image() -> None:
        device.copy(placed.x, noise, tokens * size.channels * 4)
        for slot, levels in enumerate(LEVELS[:2]):
            stub(placed, times, slot, STUB_NANOSECONDS)
            put(device, placed, levels, out=placed.x)

    wanted = download(device, placed).astype(np.float64)
    for levels in LEVELS[:2]:
        wanted = wanted * factor(size.modes, *levels)

    def launched() -> str:
        image()
        return "launched"

    eager = _passes(device, times, rounds, launched)
    first = download(device, placed, placed.x)
    graph = _passes(device, times, rounds, lambda: device.replay(("image", tokens), image), warm_up=3)
    second = download(device, placed, placed.x)
    error = float(np.linalg.norm(second - wanted) / np.linalg.norm(wanted))
    refusals = list(getattr(device, "refusals", {}).values())
    emit(
        f"graph: result, {tokens} tokens",
        f"relative error {error:.1e}, graph and launches {'equal' if np.array_equal(first, second) else 'DIFFER'}",
        error < _TOLERANCE and np.array_equal(first, second),
        check=True,
        error=error,
    )
    for name, (how, host, gap) in (("launched one by one", eager), ("as a graph", graph)):
        aimed = name == "as a graph" and tokens == AIM_TOKENS
        emit(
            f"graph: {tokens} tokens, {name}",
            f"host {host.median_s * 1e6:.1f} us an evaluation, gap {gap.median_s * 1e6:.1f} us "
            f"(p99 {gap.p99_s * 1e6:.1f}; {size.moved / 1e6:.1f} MB need {bound * 1e6:.1f}"
            f"{f'; aim {GAP_AIM * 1e6:.0f}' if aimed else ''}), {how}",
            (gap.median_s < GAP_AIM and how == "replayed") if aimed else None,
            host=asdict(host),
            gap=asdict(gap),
            bytes=size.moved,
            bound_s=bound,
            how=how,
            refusals=[str(reason) for reason in refusals],
            stub_s=STUB_NANOSECONDS / 1e9,
        )
    device.forget()
    device.free(times)
    device.free(placed.block)


def _passes(
    device: Device, times: int, rounds: int, image: Callable[[], str], warm_up: int = 2
) -> tuple[str, Timing, Timing]:
    """How the last was run; what the host needed to put an evaluation on the stream; the time between evaluations."""
    hosts, gaps, how = [], [], ""
    for _ in range(warm_up + rounds):
        notes = np.array([np.iinfo(np.uint64).max, 0] * 2, np.uint64)
        device.upload(times, notes)
        device.synchronize()
        start = time.perf_counter()
        how = image()
        hosts.append(time.perf_counter() - start)
        device.download(times, notes)
        gaps.append((int(notes[2]) - int(notes[1])) / 1e9)
    return how, timing(hosts[warm_up:], calls=2), timing(gaps[warm_up:])
