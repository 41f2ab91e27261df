"""FP8 numbers (E4M3FN) as ONNX's QuantizeLinear makes them: divide, saturate, round to nearest even.

A weight has one scale per output channel (its rows), an activation one scale in all. Zero points do not exist in FP8:
zero is zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from arcflow.sources.fp8 import FP8_MAX as FP8_MAX
from arcflow.sources.fp8 import from_codes as from_codes
from arcflow.sources.fp8 import row_scales as row_scales
from arcflow.sources.fp8 import saturated
from arcflow.sources.fp8 import to_codes as to_codes

if TYPE_CHECKING:
    import torch

SCALE_SUFFIX = "_scale"
"""Name of a weight's scales: the weight's own name and this."""

INPUT_SCALE_SUFFIX = ".input_scale"
"""Name of a layer's activation scale: the layer's name and this."""


def fake_quantise_rows(rows: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """What is left of rows [n, ...] after FP8 with a scale per row, as float32. dtype: as in :func:`row_scales`."""
    scales = row_scales(rows, dtype)
    return from_codes(to_codes(rows, scales), scales)


def fake_quantise(values: torch.Tensor, scale: float) -> torch.Tensor:
    """What is left of ``values`` of any shape after FP8 with one scale > 0; computed in float32, in their own dtype."""
    import torch

    step = torch.full(
        (), scale, dtype=torch.float32, device=values.device
    )  # a number would be inverted on some devices
    return (saturated(values.float() / step).float() * step).to(values.dtype)


def activation_scale(amax: float) -> float:
    """The scale of an activation whose magnitudes are to be kept up to ``amax`` >= 0; 1 where that is zero."""
    return amax / FP8_MAX if amax > 0.0 else 1.0


def round_up(value: float, digits: int) -> float:
    """A measured value >= 0, rounded up to so many significant digits: the rest depends on the machine."""
    if value == 0.0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / unit) * unit:.{digits - 1}e}")
