"""What a calibration will take, said before it starts: memory, and time from a short measurement of the device."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from export.folders.places import Needs
from export.networks.streaming import Placement, free_memory, weight_bytes

if TYPE_CHECKING:
    import torch

    from export.networks.base import Network
    from export.networks.cost import Cost
    from export.quality.measure import Run
    from export.students.subject import Subject

_PROGRAM_MEMORY = 800 << 20
"""Bytes that torch, diffusers and transformers take before any weight is read (measured)."""

_LIVE_TENSORS = 6
"""Activations as wide as the widest linear's input that are alive together."""

_READ_SPEED = 1 << 30
"""Bytes a second at which streamed weights are read, merged and cast, about (measured)."""

_SLOWER, _BYTES_A_SECOND = 1.5, 1.5e9
"""How much slower a network computes than one large product of matrices, and how fast a CPU writes float32 values that
lie between (measured on small students at 320 and 1024 pixels; see ``docs/log.md``)."""

_PROBE = 1024
"""Side of the square matrices whose product measures the device."""


def expected_load(subject: Subject, run: Run) -> tuple[Needs, int]:
    """What a run takes, and the memory that is there: as :func:`expected_loads` of it alone."""
    _, needed, free = next(expected_loads(subject, [run]))
    return needed, free


def expected_loads(subject: Subject, runs: Iterable[Run]) -> Iterator[tuple[Run, Needs, int]]:
    """What each run takes and the memory that is there. Found from headers, from running the backbone without values
    (once for a size of image), and from a product of two matrices on the device."""
    from export.networks.cost import cost_of

    costs: dict[tuple[int, int], Cost] = {}
    for run in runs:
        size = subject.grid(run.width, run.height)
        if size not in costs:
            text = subject.spec.limits.text_tokens.opt
            tokens = {"batch": 1, "image_tokens": math.prod(size), "rows": size[0], "text_tokens": text}
            costs[size] = cost_of(run.backbone, tokens)
        yield run, *_load(subject, run, costs[size])


def seconds_of(cost: Cost, dtype: torch.dtype, device: torch.device) -> float:
    """Time of a call that costs so much."""
    slowly = cost.made / _BYTES_A_SECOND * dtype.itemsize / 4 if device.type == "cpu" else 0.0
    return _SLOWER * cost.operations / speed(dtype, device) + slowly


def _load(subject: Subject, run: Run, cost: Cost) -> tuple[Needs, int]:
    evaluations = len(run.sigmas) - 1
    prompts, batches = len(run.prompts), math.ceil(len(run.prompts) / run.batch)
    rows, columns = subject.grid(run.width, run.height)
    tokens = rows * columns + subject.spec.limits.text_tokens.opt
    weights = run.backbone.weights
    matrices = [info.shape for info in weights.values() if len(info.shape) == 2]
    held = weight_bytes(run.backbone, run.dtype)
    seconds = seconds_of(cost, run.dtype, run.device) * evaluations * prompts
    if run.placement is Placement.STREAM:
        seconds += held * evaluations * batches / _READ_SPEED
        held = _streamed(run.backbone)
    parts = subject.architecture.parts.items()
    texts = [subject.network(name) for name, part in parts if not part.merged and name != "vae_decoder"]
    width = max(shape[1] for shape in matrices)
    activations = run.batch * tokens * width * run.dtype.itemsize * _LIVE_TENSORS
    encodings = prompts * subject.spec.limits.text_tokens.opt * 4096 * run.dtype.itemsize
    text = max(min(weight_bytes(network, run.dtype), _streamed(network)) for network in texts)
    memory = _PROGRAM_MEMORY + max(held + activations, text) + encodings
    return Needs(memory, seconds=seconds), free_memory(run.device)


def describe(run: Run, needed: Needs) -> str:
    """One line for the terminal."""
    dtype = str(run.dtype).removeprefix("torch.")
    place = "all of it in memory" if run.placement is Placement.HOLD else "streamed layer by layer"
    levels = ", ".join(f"{sigma:.3g}" for sigma in run.sigmas[:-1])
    prompts = "1 prompt" if len(run.prompts) == 1 else f"{len(run.prompts)} prompts"
    return f"{prompts} at {run.width}x{run.height}, sigmas {levels}, {dtype} on {run.device}, {place}: about {needed}"


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
