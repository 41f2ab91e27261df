"""What building a plan takes, estimated from the size of its weights before anything heavy starts."""

from __future__ import annotations

from export.folders.places import Needs
from export.tensorrt.targets import DATA_CENTRE, Target

_PROGRAM_MEMORY = 450 << 20
"""Bytes that Python, TensorRT and the parsed graph take beside the weights (measured on small networks)."""

_PLAN_OVERHEAD = 8 << 20
"""Bytes of a plan beside its weights (measured: kernels of a network with few blocks)."""

_SECONDS_PER_BYTE = 19e-9
"""Measured for a plan of 12 GB in FP8 by TensorRT for RTX on two cores: 226 s."""

HIGH_SHARE = 0.45
"""Part of an FP8 backbone's bytes that stay bfloat16 (FLUX: 0.43), where it is not told."""

_MEMORY = 1.6
"""Anonymous bytes a byte of weights, as plans are streamed out; measured: 1.55 in FP16."""

_MEMORY_FP8 = 1.75
"""The same of weights in FP8; measured for sm89: 1.71."""

_MEMORY_SM120 = 1.2
"""The same where sm120 is among the targets; measured for 12 GB: 1.14."""

_MEMORY_HIGH = 1.9
"""The same of what stays wider beside them; measured at 6.6 GB beside 8.6 GB of FP8, for sm120."""

_MEMORY_DATA_CENTRE = 2.0
"""The same for the data-centre flavour; not measured, so it is set higher."""


PLANS_ADVICE = "close other programs, or take a larger machine (fp8 for sm120 takes the least)"
"""What to do where there is too little memory."""


def estimate(high: int, fp8: int, target: Target, flavour: str | None = None) -> Needs:
    """What the plan of one network takes. high, fp8: bytes of its weights in a wider type and in FP8, as the ONNX
    stores them. The time is not known where the builder tunes on a GPU."""
    factor = _MEMORY_FP8 if fp8 else _MEMORY
    if fp8 and "sm120" in target.capabilities:
        factor = _MEMORY_SM120
    if flavour == DATA_CENTRE:
        factor = _MEMORY_DATA_CENTRE
    memory = factor * fp8 + (max(factor, _MEMORY_HIGH) if fp8 else factor) * high
    seconds = None if flavour == DATA_CENTRE else 2 + _SECONDS_PER_BYTE * (high + fp8)
    return Needs(int(_PROGRAM_MEMORY + memory), high + fp8 + _PLAN_OVERHEAD, seconds)
