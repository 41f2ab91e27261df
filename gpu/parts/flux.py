"""The FLUX student at full size with random bfloat16 weights in torch: what engines must beat.

Two evaluations at 1024x1024 with the solver between, one way to run them a process (gpu/flux/modes.py), and in the mode
``image`` from the prompt's ids to the image's bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from foundation.measuring import timing
from gpu.catalogue import Options
from gpu.device import open_gpu, torch_device
from gpu.flux.modes import MODES, USUAL
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

    from gpu.flux.baseline import Baseline, difference
    from gpu.timing import recorded, seconds_of

    mode, size, side, text_tokens = MODES[name], *sizes(options)
    if where == "cpu":
        mode = replace(mode, compiled=None, attention="torch" if mode.attention == "cudnn" else mode.attention)
    start = time.perf_counter()
    baseline = Baseline(size, mode, where, side, text_tokens)
    device = open_gpu() if mode.solver == "kernel" and where == "cuda" else None
    _forget_memory()
    built, start = time.perf_counter() - start, time.perf_counter()
    with baseline.ready(device):
        latent = baseline.generate()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        first = time.perf_counter() - start
        evaluate: Callable[[], Any] = partial(baseline.evaluate, baseline.noise)
        generate: Callable[[], Any] = baseline.generate
        how = "launched"
        if mode.graph:
            evaluate, how = recorded(evaluate)
            generate, how = recorded(generate)
        rounds = options.pick(ROUNDS, 2, 2)
        each, both = timing(seconds_of(evaluate, rounds)), timing(seconds_of(generate, rounds))
        again = generate()
        finite = bool(torch.isfinite(latent).all())
        rate, peak = baseline.operations / each.median_s, _peak_bytes()
        emit(
            f"FLUX, {name}",
            f"{each.median_s * 1e3:.1f} ms an evaluation, {both.median_s * 1e3:.1f} ms for both with the solver, "
            f"{rate / 1e12:.0f} TFLOP/s, peak {peak / 2**30:.1f} GiB"
            + ("" if mode.published is None else f" (others report {mode.published:.0f} ms)"),
            evaluation=asdict(each),
            both=asdict(both),
            rate=rate,
            operations=baseline.operations,
            peak_bytes=peak,
            mode=asdict(mode),
            parameters=baseline.parameters,
            build_s=built,
            first_s=first,
            how=how,
            solver="the runtime's kernel" if device is not None else "torch",
            fp8_linears=baseline.fp8_linears,
            difference_from_eager=difference(
                latent, options.out, f"{baseline.parameters}-{side}-{where}", name == "eager"
            ),
            same_again=bool(torch.equal(latent, again)),
            finite=finite,
        )
        if not finite:
            raise ValueError(f"mode {name} gave values that are not finite")
        if mode.image:
            whole(emit, options, baseline, generate, rounds)
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


def whole(emit: Emit, options: Options, baseline: Baseline, generate: Callable[[], Tensor], rounds: int) -> None:
    """From ids on the host to bytes on the host: text encoders, two evaluations, VAE, each a CUDA graph."""
    import torch

    from gpu.flux.ends import CLIP_TOKENS, make_ends
    from gpu.timing import recorded, seconds_of

    side, where = math.isqrt(baseline.noise.shape[1]), baseline.where
    ends = make_ends(where, side, options.rehearse)
    words = [torch.randint(3, 60, (1, n)) for n in (baseline.given["encoder_hidden_states"].shape[1], CLIP_TOKENS)]
    ids = [given.to(where) for given in words]
    latent = generate()
    calls: dict[str, Callable[[], Any]] = {
        "T5-XXL": lambda: baseline.given["encoder_hidden_states"].copy_(ends.t5(input_ids=ids[0]).last_hidden_state),
        "CLIP-L": lambda: baseline.given["pooled_projections"].copy_(ends.clip(input_ids=ids[1]).pooler_output),
        "VAE decoder": lambda: ends.decode(latent),
    }
    stages, hows = {}, {}
    for what, stage in calls.items():
        calls[what], hows[what] = recorded(stage)
        stages[what] = timing(seconds_of(calls[what], rounds))
        emit(
            f"FLUX, {what}",
            f"{stages[what].median_s * 1e3:.2f} ms, {hows[what]}",
            **asdict(stages[what]),
            how=hows[what],
        )

    def image() -> Tensor:
        for given, place in zip(words, ids, strict=True):
            place.copy_(given, non_blocking=True)
        calls["T5-XXL"]()
        calls["CLIP-L"]()
        latent.copy_(generate())  # Where the two are no graph, the result lies elsewhere each time.
        made: Tensor = calls["VAE decoder"]()
        return made.cpu()

    walls = []
    for _ in range(2 + rounds):
        start = time.perf_counter()
        made = image()
        walls.append(time.perf_counter() - start)
    total = timing(walls[2:])
    emit(
        "FLUX, prompt to image",
        f"{total.median_s * 1e3:.1f} ms from ids to {made.shape[1]}x{made.shape[0]} bytes on the host "
        f"({', '.join(f'{what} {stage.median_s * 1e3:.1f}' for what, stage in stages.items())})",
        **asdict(total),
        stages={what: asdict(stage) for what, stage in stages.items()},
        how=hows,
        peak_bytes=_peak_bytes(),
    )


def _forget_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_bytes() -> int:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
