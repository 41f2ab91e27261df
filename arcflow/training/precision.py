"""What a run computes in where its recipe leaves that open: ``precision = "auto"``.

bfloat16 pays where the processor multiplies in it. Where it does not torch takes it apart: on a CPU without AVX-512's
bfloat16 a product can run a hundred times slower than in float32. So a product of the model's shape is timed in both.
A run that is continued keeps what it began with, whatever machine it is continued on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.benchmark import Timer

from arcflow.recipe import LoopConfig, Settled
from arcflow.training.checkpoint import precision_of

MOST = 512
"""The largest side of the matrices that are timed: a fraction of a second also where bfloat16 is taken apart."""
PAYS = 0.8
"""bfloat16 is taken where a product takes at most this share of float32's time: casts around it cost time too."""
_SECONDS = 0.1


def settle(
    config: LoopConfig,
    module: nn.Module,
    workdir: Path,
    device: torch.device,
    tell: Callable[[str], object],
) -> LoopConfig:
    """The config with "auto" decided: as the run in ``workdir`` began, or else measured on ``device``.

    module: what will be trained, of whose shapes the measurement is; it may be on the meta device. tell: is told in one
    line. All processes of a run must call it; the first decides for all. Raises CheckpointError where the run's state
    cannot be read.
    """
    if config.precision != "auto":
        return config
    begun = precision_of(workdir / "checkpoints")
    chosen, why = (begun, "as it began") if begun is not None else measured(product_of(module), device)
    chosen, why = broadcast_object_list([chosen, why])
    tell(f"{workdir.name} computes in {chosen}: {why}")
    return replace(config, precision=chosen)


def product_of(module: nn.Module) -> tuple[int, int, int]:
    """Rows, inner and outer side of the module's largest matrix product, none over ``MOST``."""
    weights = [m.weight for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    outer, inner = max(weights, key=torch.numel).flatten(1).shape
    return MOST, min(inner, MOST), min(outer, MOST)


def measured(shape: tuple[int, int, int], device: torch.device) -> tuple[Settled, str]:
    """What to compute in, and why: the times of a product of that shape in both."""
    seconds = {dtype: seconds_of(shape, dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    single, half = seconds.values()
    times = f"{half * 1e3:.3g} ms, in fp32 {single * 1e3:.3g} ms"
    return choose(single, half), f"in bf16 a {'x'.join(map(str, shape))} matrix product takes {times}"


def choose(single: float, half: float) -> Settled:
    """By the seconds of a product in float32 and in bfloat16."""
    return "bf16" if half <= PAYS * single else "fp32"


def seconds_of(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    """The shortest time of a matrix product; a few are made, in a tenth of a second or what one takes."""
    rows, inner, outer = shape
    a = torch.ones(rows, inner, dtype=dtype, device=device)
    b = torch.ones(inner, outer, dtype=dtype, device=device)
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=_SECONDS).times)
