"""FP8 numbers (E4M3FN) as ONNX's QuantizeLinear makes them: divide, saturate, round to nearest even.

A weight has one scale per output channel (its rows), an activation one scale in all. Zero points do not exist in FP8:
zero is zero.
"""

from __future__ import annotations

import math

from arcflow.sources.fp8 import FP8_MAX as FP8_MAX
from arcflow.sources.fp8 import activation_scale as activation_scale
from arcflow.sources.fp8 import fake_quantise as fake_quantise
from arcflow.sources.fp8 import fake_quantise_rows as fake_quantise_rows
from arcflow.sources.fp8 import from_codes as from_codes
from arcflow.sources.fp8 import row_scales as row_scales
from arcflow.sources.fp8 import to_codes as to_codes

SCALE_SUFFIX = "_scale"
"""Name of a weight's scales: the weight's own name and this."""

INPUT_SCALE_SUFFIX = ".input_scale"
"""Name of a layer's activation scale: the layer's name and this."""


def round_up(value: float, digits: int) -> float:
    """A measured value >= 0, rounded up to so many significant digits: the rest depends on the machine."""
    if value == 0.0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / unit) * unit:.{digits - 1}e}")
