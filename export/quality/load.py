"""What a calibration will take, said before it starts: memory, and time from a short measurement of the device."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.errors import CalibrationError
from export.networks.streaming import Placement, free_memory, weight_bytes

if TYPE_CHECKING:
    import torch

    from export.networks.base import Network
    from export.quality.measure import Plan
    from export.students.subject import Subject

_PROGRAM_MEMORY = 800 << 20
"""Bytes that torch, diffusers and transformers take before any weight is read (measured)."""

_LIVE_TENSORS = 6
"""Activations as wide as the widest linear's input that are alive together."""

_READ_SPEED = 1 << 30
"""Bytes a second at which streamed weights are read, merged and cast, about (measured)."""

_PROBE = 1024
"""Side of the square matrices whose product measures the device."""


@dataclass(frozen=True)
class Load:
    """memory: bytes on the device at the peak; free: bytes there are; seconds: of the whole run, roughly."""

    memory: int
    free: int
    seconds: float


def expected_load(subject: Subject, plan: Plan) -> Load:
    """Estimate a run from the headers and a product of two matrices on the device."""
    evaluations = len(plan.sigmas) - 1
    prompts, batches = len(plan.prompts), math.ceil(len(plan.prompts) / plan.batch)
    rows, columns = subject.grid(plan.width, plan.height)
    tokens = rows * columns + subject.spec.limits.text_tokens.opt
    weights = plan.backbone.weights
    matrices = [info.shape for info in weights.values() if len(info.shape) == 2]
    operations = 2.0 * sum(map(math.prod, matrices)) * tokens * evaluations * prompts
    held = weight_bytes(plan.backbone, plan.dtype)
    seconds = operations / speed(plan.dtype, plan.device)
    if plan.placement is Placement.STREAM:
        seconds += held * evaluations * batches / _READ_SPEED
        held = _streamed(plan.backbone)
    texts = [subject.network(name) for name in subject.architecture.NETWORKS if name not in ("backbone", "vae_decoder")]
    width = max(shape[1] for shape in matrices)
    activations = plan.batch * tokens * width * plan.dtype.itemsize * _LIVE_TENSORS
    encodings = prompts * subject.spec.limits.text_tokens.opt * 4096 * plan.dtype.itemsize
    text = max(min(weight_bytes(network, plan.dtype), _streamed(network)) for network in texts)
    memory = _PROGRAM_MEMORY + max(held + activations, text) + encodings
    return Load(memory, free_memory(plan.device), seconds)


def describe_load(plan: Plan, load: Load) -> str:
    """One line for the terminal."""
    dtype = str(plan.dtype).removeprefix("torch.")
    place = "all of it in memory" if plan.placement is Placement.HOLD else "streamed layer by layer"
    levels = ", ".join(f"{sigma:.3g}" for sigma in plan.sigmas[:-1])
    minutes = load.seconds / 60
    duration = f"{minutes / 60:,.1f} h" if minutes > 90 else f"{max(minutes, 1):,.0f} min"
    return (
        f"{len(plan.prompts)} prompts at {plan.width}x{plan.height}, sigmas {levels}, {dtype} on {plan.device}, "
        f"{place}: about {load.memory / (1 << 30):,.1f} GiB of memory and {duration}"
    )


def check_load(load: Load) -> None:
    """Raise CalibrationError where the memory is not there."""
    if load.memory > load.free:
        raise CalibrationError(
            f"about {load.memory / (1 << 30):,.1f} GiB of memory are needed, {load.free / (1 << 30):,.1f} GiB are "
            "free; use a smaller --batch or --size, or fewer prompts with --num"
        )


def _streamed(network: Network) -> int:
    """Bytes of one layer while it is merged: its greatest tensor, in float32 and in the type it is kept in."""
    return 8 * max(math.prod(info.shape) for info in network.weights.values())


def speed(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of matrix products on the device, measured in some tenths of a second."""
    import torch

    a = torch.randn(_PROBE, _PROBE).to(device, dtype)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2.0 * _PROBE**3 / best
