"""What building a plan takes, estimated from the size of its weights before anything heavy starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.folders.places import check_memory, check_place
from export.precision import Precision
from export.tensorrt.targets import DATA_CENTRE, choose_target

_PROGRAM_MEMORY = 450 << 20
"""Bytes that Python, TensorRT and the parsed graph take beside the weights (measured on small networks)."""

_PLAN_OVERHEAD = 8 << 20
"""Bytes of a plan beside its weights (measured: kernels of a network with few blocks)."""

_SECONDS_PER_BYTE = 19e-9
"""Measured for a plan of 12 GB in FP8 by TensorRT for RTX on two cores: 226 s."""

_HIGH_SHARE = 0.45
"""Part of an FP8 backbone's bytes that stay bfloat16 (FLUX: 0.43), where it is not told."""

_MEMORY_HIGH = 1.9
"""Anonymous bytes a byte of those; measured at 6.6 GB beside 8.6 GB of FP8, for sm120."""

_MEMORY_SM120 = 1.2
"""Anonymous bytes a byte of FP8 weights where sm120 is among the targets; measured for 12 GB: 1.14."""

_MEMORY = {Precision.FP32: 1.6, Precision.FP16: 1.6, Precision.BF16: 1.6, Precision.FP8: 1.75}
"""The same in general, as plans are streamed out; measured: 1.55 in FP16, 1.71 in FP8 for sm89."""

_MEMORY_DATA_CENTRE = 2.0
"""The same for the data-centre flavour; not measured, so it is set higher."""


@dataclass(frozen=True)
class PlanEstimate:
    """memory: anonymous bytes at the peak; disk: bytes of the plan; seconds: None where the builder tunes on a GPU."""

    memory: int
    disk: int
    seconds: float | None


def estimate(
    weights_bytes: int,
    target: str,
    precision: Precision | str = Precision.BF16,
    flavour: str | None = None,
    high_bytes: int | None = None,
) -> PlanEstimate:
    """What one network takes to build.

    weights_bytes: of its weights as they are stored in the ONNX; high_bytes: those of them that fp8 leaves in a wider
    type, which cost the builder more.
    """
    precision, wanted = Precision(precision), choose_target(target)
    factor = _MEMORY[precision]
    if precision is Precision.FP8 and "sm120" in wanted.capabilities:
        factor = _MEMORY_SM120
    if flavour == DATA_CENTRE:
        factor = _MEMORY_DATA_CENTRE
    high = 0
    if precision is Precision.FP8:
        high = int(_HIGH_SHARE * weights_bytes) if high_bytes is None else high_bytes
    memory = factor * (weights_bytes - high) + max(factor, _MEMORY_HIGH) * high
    seconds = None if flavour == DATA_CENTRE else 2 + _SECONDS_PER_BYTE * weights_bytes
    return PlanEstimate(int(_PROGRAM_MEMORY + memory), weights_bytes + _PLAN_OVERHEAD, seconds)


def combined(plans: Sequence[PlanEstimate]) -> PlanEstimate:
    """What plans take that are built one after the other."""
    seconds = [plan.seconds for plan in plans if plan.seconds is not None]
    return PlanEstimate(
        memory=max(plan.memory for plan in plans),
        disk=sum(plan.disk for plan in plans),
        seconds=sum(seconds) if len(seconds) == len(plans) else None,
    )


def check_fit(needed: PlanEstimate, workdir: Path) -> None:
    """Raise ExportError where this machine has less free memory, or ``workdir`` less room, than the plans need."""
    check_memory(needed.memory, " (fp8 for sm120 takes the least)")
    check_place(workdir, "--workdir", needed.disk)
