"""How fast the solver kernel is: beside a copy of the same bytes, and beside torch, eager and compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from gpu.catalogue import Options
from gpu.kernels.checks import LEVELS
from gpu.kernels.fields import Size, free, put, random_field, reserve, upload
from gpu.records import Emit, Printer, guarded
from gpu.timing import GRAPH, Timed, in_torch, on_device

if TYPE_CHECKING:
    from runtime.cuda.interface import Device

AIM = 0.85
"""Share of a copy's bandwidth that the kernel is to reach where the L2 does not hold the field."""

_LEAST_SECONDS, _GUESS, _MOST_CALLS = 2e-3, 2e12, 400
"""How long a timed graph runs at least, so that its launch is some thousandths of it; bytes a second, to guess how many
calls that takes; and how many it takes at most."""

_TORCH = ((4096, 1), (4096, 8), (16384, 1))
"""Tokens and batch at which torch is measured as well: each compiles anew."""


def measure_sizes(
    printer: Printer,
    options: Options,
    device: Device,
    tokens: Sequence[int],
    batches: Sequence[int],
    dtypes: Sequence[str],
) -> None:
    """Kernel and copy at every size, torch at some; a size that fails does not stop the others."""
    tokens = options.pick(tokens, tokens[:1], (64,))
    if options.smoke:
        batches, dtypes = batches[:1], ("float32", "bfloat16")
    rounds = options.pick(50, 5, 2)
    sizes = [Size(count, batch, 16, 64, dtype) for dtype in dtypes for count in tokens for batch in batches]
    kernels: dict[Size, Timed] = {}
    best = large_copy(printer, device, options.pick(1 << 30, 32 << 20, 1 << 20), rounds)
    for size in sizes:

        def work(size: Size = size) -> None:
            kernels[size] = measure(printer, device, size, rounds, best)

        guarded(printer, f"solver: {size}", work)
    for size in sizes:
        if (size.tokens, size.batch) in _TORCH and size.dtype != "float16" and size in kernels:
            guarded(printer, f"torch's solver: {size}", partial(against_torch, printer, size, kernels[size], rounds))


def large_copy(emit: Emit, device: Device, size: int, rounds: int) -> float:
    """Bytes a second, read and written, of a copy that is far larger than any cache, whose launch costs nothing."""
    source, target = (device.allocate(size, "a large copy") for _ in range(2))
    device.normal(1, size // 4, source)
    timing = on_device(device, ("large copy", size), [partial(device.copy, target, source, size)] * 4, rounds)
    device.forget()
    device.free(source)
    device.free(target)
    rate = 2 * size / timing.median_s
    emit(f"copy of {size >> 20} MiB", f"{rate / 1e9:.0f} GB/s read and written", rate=rate, copy=asdict(timing))
    return rate


def measure(emit: Emit, device: Device, size: Size, rounds: int, best: float) -> Timed:
    """Time the kernel where its field is not in the L2, and where it is as warm as repeating makes it; and a copy.

    The copy moves as many bytes, half of them read and half written, by the device's own copy, in the same kind of
    graph and over as many buffers. best: bytes a second of a large copy, the stricter yardstick, since a small one
    pays for its launch as the kernel does. Returns the cold timing.
    """
    l2 = device.info.l2_bytes
    sets = max(2, -(-3 * l2 // size.moved) + 1)
    placed = [reserve(device, size) for _ in range(sets)]
    upload(device, random_field(size, seed=1, where=_where()), placed[0])
    for other in placed[1:]:
        device.copy(other.block, placed[0].block, sum(size.parts))
    count = max(sets, min(_MOST_CALLS, int(_LEAST_SECONDS * _GUESS / size.moved) + 1))
    steps = [partial(put, device, placed[i % sets], LEVELS[1]) for i in range(count)]
    cold = on_device(device, ("solver", size), steps, rounds)
    hot = on_device(device, ("solver, hot", size), [steps[0]] * count, rounds)
    half = size.moved // 2 // 256 * 256
    # Half a block to the other half of a block three L2 away: all of them are read and written, none twice in a row.
    pairs = [(placed[i % sets].block, placed[(i + sets // 2) % sets].block + half) for i in range(count)]
    copies = [partial(device.copy, target, source, half) for source, target in pairs]
    copy = on_device(device, ("copy", size), copies, rounds)
    device.forget()
    free(device, placed)
    share = copy.median_s / cold.median_s * (size.moved / (2 * half))
    beyond, rate = size.moved > l2, size.moved / cold.median_s
    emit(
        f"solver: {size}",
        f"{cold.median_s * 1e6:.1f} us (bytes need {size.moved / best * 1e6:.1f}), {rate / 1e9:.0f} GB/s, "
        f"{share:.2f} of a copy{f' (aim {AIM})' if beyond else ''} at {2 * half / copy.median_s / 1e9:.0f}, "
        f"{rate / best:.2f} of a large one; hot {hot.median_s * 1e6:.1f} us",
        share >= AIM if beyond else None,
        size=str(size),
        bytes=size.moved,
        bound_s=size.moved / best,
        share_of_copy=round(share, 4),
        share_of_large_copy=round(rate / best, 4),
        beyond_l2=beyond,
        sets=sets,
        calls=count,
        cold=asdict(cold),
        hot=asdict(hot),
        copy=asdict(copy),
    )
    return cold


def against_torch(emit: Emit, size: Size, ours: Timed, rounds: int) -> None:
    """The training code's closed form on the same kind of field: eager and compiled, launched and in a CUDA graph."""
    import torch
    import torch._dynamo as dynamo

    where = _where()
    sets = 4 if size.moved < 200_000_000 else 2
    fields = [random_field(size, seed=seed, where=where) for seed in range(sets)]
    levels = [torch.tensor(level, device=where) for level in LEVELS[1]]
    found: dict[str, Any] = {}
    dynamo.reset()
    with torch.no_grad():
        for how, function in (("eager", closed_form), ("compiled", torch.compile(closed_form, dynamic=False))):
            calls = [partial(function, f.means, f.logweights, f.loggammas, f.x, *levels) for f in fields]
            calls *= max(1, 16 // sets)
            found[how] = in_torch(calls, rounds, how)
            if torch.cuda.is_available():
                found[f"{how}, {GRAPH}"] = in_torch(calls, rounds, how, graph=True)
    shown = ", ".join(f"{how} {timing.median_s * 1e6:.1f} us" for how, timing in found.items())
    best = min(timing.median_s for timing in found.values())
    emit(
        f"torch's solver: {size}",
        f"{shown}; the kernel {ours.median_s * 1e6:.1f} us, {best / ours.median_s:.1f}x the best",
        best >= ours.median_s,
        size=str(size),
        kernel=asdict(ours),
        times={how: asdict(timing) for how, timing in found.items()},
    )


def closed_form(means: Any, logweights: Any, loggammas: Any, x: Any, src: Any, a: Any, b: Any) -> Any:
    """The state at ``b`` from ``x`` at ``a``, in the segment that starts at ``src``, as the training code has it."""
    from arcflow.field import MomentumField, displacement

    return x + displacement(MomentumField(means, logweights, loggammas), src, a, b)


def _where() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
