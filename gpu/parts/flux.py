"""The FLUX student at full size with random bfloat16 weights in torch: what engines must beat.

Two evaluations at 1024x1024 with the solver between, one way to run them a process (gpu/flux/modes.py), and in the mode
``picture`` from the prompt's ids to the image's bytes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from foundation.quantiles import percentile
from gpu.catalogue import Options
from gpu.device import open_gpu, torch_device
from gpu.flux.modes import MODES, USUAL, Mode
from gpu.records import Emit, Printer, guarded

if TYPE_CHECKING:
    from torch import Tensor

    from gpu.flux.backbone import BackboneSize
    from gpu.flux.baseline import Baseline

SIDE, TEXT_TOKENS = 64, 512
ROUNDS = 20


def run(printer: Printer, options: Options) -> None:
    """Measure the modes one after the other; whoever asks for one a process, gets one."""
    where = torch_device(options)
    for name in options.modes or USUAL:
        guarded(printer, f"FLUX, {name}", partial(measure, printer, options, name, where))


def measure(emit: Emit, options: Options, name: str, where: str) -> None:
    """Build the student, run it as the mode says, and time an evaluation and an image's two."""
    import torch

    from gpu.flux.baseline import Baseline, difference, recorded, seconds_of

    mode, size, side, text_tokens = MODES[name], *sizes(options)
    if where == "cpu":
        mode = replace(mode, compiled=None, attention="torch" if mode.attention == "cudnn" else mode.attention)
    start = time.perf_counter()
    baseline = Baseline(size, mode, where, side, text_tokens)
    device = open_gpu() if mode.solver == "kernel" and where == "cuda" else None
    _forget_memory()
    built, start = time.perf_counter() - start, time.perf_counter()
    with baseline.ready(device):
        latent = baseline.paint()
        _wait()
        first = time.perf_counter() - start
        evaluate: Callable[[], Any] = partial(baseline.evaluate, baseline.noise)
        paint: Callable[[], Any] = baseline.paint
        how = "launched"
        if mode.graph:
            evaluate, how = recorded(evaluate)
            paint, how = recorded(paint)
        rounds = 2 if options.smoke else ROUNDS
        evaluations, pictures = seconds_of(evaluate, rounds), seconds_of(paint, rounds)
        again = paint()
        finite = bool(torch.isfinite(latent).all())
        away = difference(latent, options.out, f"{baseline.parameters}-{side}-{where}", name == "eager")
        report(
            emit,
            name,
            mode,
            evaluations,
            pictures,
            operations=baseline.operations,
            peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
            parameters=baseline.parameters,
            build_s=built,
            first_s=first,
            how=how,
            solver="the runtime's kernel" if device is not None else "torch",
            fp8_linears=baseline.fp8_linears,
            difference_from_eager=away,
            same_again=bool(torch.equal(latent, again)),
            finite=finite,
        )
        if not finite:
            raise ValueError(f"mode {name} gave values that are not finite")
        if mode.picture:
            whole(emit, options, baseline, paint, rounds)
    if device is not None:
        device.close()


def sizes(options: Options) -> tuple[BackboneSize, int, int]:
    """The network's size, tokens of the image's side, tokens of text."""
    from gpu.flux.backbone import BackboneSize

    if not options.rehearse:
        size = replace(BackboneSize(), num_layers=1, num_single_layers=2) if options.smoke else BackboneSize()
        return size, SIDE, TEXT_TOKENS
    size = BackboneSize(
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        axes_dims_rope=(4, 6, 6),
        joint_attention_dim=16,
        pooled_projection_dim=16,
    )
    return size, 4, 8


def report(
    emit: Emit,
    name: str,
    mode: Mode,
    evaluations: Sequence[float],
    pictures: Sequence[float],
    operations: int,
    peak_bytes: int,
    **figures: Any,
) -> None:
    """One line a mode."""
    middle, both = statistics.median(evaluations), statistics.median(pictures)
    emit(
        f"FLUX, {name}",
        f"{middle * 1e3:.1f} ms an evaluation, {both * 1e3:.1f} ms for both with the solver, "
        f"{operations / middle / 1e12:.0f} TFLOP/s, peak {peak_bytes / 2**30:.1f} GiB"
        + ("" if mode.published is None else f" (others report {mode.published:.0f} ms)"),
        evaluation_ms=middle * 1e3,
        evaluation_p99_ms=percentile(evaluations, 0.99) * 1e3,
        both_ms=both * 1e3,
        both_p99_ms=percentile(pictures, 0.99) * 1e3,
        rate=operations / middle,
        operations=operations,
        peak_bytes=peak_bytes,
        rounds=len(evaluations),
        mode=asdict(mode),
        **figures,
    )


def whole(emit: Emit, options: Options, baseline: Baseline, paint: Callable[[], Tensor], rounds: int) -> None:
    """From ids on the host to bytes on the host: text encoders, two evaluations, VAE, each a CUDA graph."""
    import torch

    from gpu.flux.baseline import recorded, seconds_of
    from gpu.flux.ends import CLIP_TOKENS, make_ends

    side, where = math.isqrt(baseline.noise.shape[1]), baseline.where
    ends = make_ends(where, side, options.rehearse)
    words = [torch.randint(3, 60, (1, n)) for n in (baseline.given["encoder_hidden_states"].shape[1], CLIP_TOKENS)]
    ids = [given.to(where) for given in words]
    latent = paint()

    def encode() -> None:
        baseline.given["encoder_hidden_states"].copy_(ends.encode(ids[0]))

    def pool() -> None:
        baseline.given["pooled_projections"].copy_(ends.pool(ids[1]))

    stages, times, hows = {"T5-XXL": encode, "CLIP-L": pool, "VAE decoder": lambda: ends.decode(latent)}, {}, {}
    calls: dict[str, Callable[[], Any]] = {}
    for what, stage in stages.items():
        calls[what], hows[what] = recorded(stage)
        times[what] = statistics.median(seconds_of(calls[what], rounds))
        emit(f"FLUX, {what}", f"{times[what] * 1e3:.2f} ms, {hows[what]}", median_ms=times[what] * 1e3, how=hows[what])

    def picture() -> Tensor:
        for given, place in zip(words, ids, strict=True):
            place.copy_(given, non_blocking=True)
        calls["T5-XXL"]()
        calls["CLIP-L"]()
        latent.copy_(paint())  # Where the two are no graph, the result lies elsewhere each time.
        made: Tensor = calls["VAE decoder"]()
        return made.cpu()

    walls = []
    for attempt in range(2 + rounds):
        start = time.perf_counter()
        made = picture()
        if attempt >= 2:
            walls.append(time.perf_counter() - start)
    total = statistics.median(walls)
    emit(
        "FLUX, prompt to picture",
        f"{total * 1e3:.1f} ms from ids to {made.shape[1]}x{made.shape[0]} bytes on the host "
        f"({', '.join(f'{what} {seconds * 1e3:.1f}' for what, seconds in times.items())})",
        median_ms=total * 1e3,
        p99_ms=percentile(walls, 0.99) * 1e3,
        stages_ms={what: seconds * 1e3 for what, seconds in times.items()},
        how=hows,
        peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        rounds=rounds,
    )


def _forget_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
