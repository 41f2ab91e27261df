"""FP8 numbers (E4M3FN) as ONNX's QuantizeLinear makes them: divide, saturate, round to nearest even.

A weight has one scale per output channel (its rows), an activation one scale in all. Zero points do not exist in FP8:
zero is zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FP8_MAX = 448.0
"""The greatest finite E4M3FN value. The format has no infinity; larger values saturate."""

SCALE_SUFFIX = "_scale"
"""Name of a weight's scales: the weight's own name and this."""

INPUT_SCALE_SUFFIX = ".input_scale"
"""Name of a layer's activation scale: the layer's name and this."""


def row_scales(rows: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Scales [n] of rows [n, ...] of any floating type: greatest magnitude / 448, and 1 for a row of zeros.

    dtype: the type in which the scales are stored (default: float32). The weights must be quantised with the scales as
    stored. A scale is never below the type's least normal number: zero would divide by zero, and engines flush what
    is subnormal. Values that are not finite give scales that are not finite.
    """
    import torch

    dtype = dtype or torch.float32
    if rows.numel() == 0:
        return torch.ones(rows.shape[0], dtype=dtype)
    amax = rows.reshape(rows.shape[0], -1).abs().amax(dim=1).float()
    scales = (amax / FP8_MAX).clamp(min=torch.finfo(dtype).tiny)
    return torch.where(amax == 0.0, torch.ones_like(scales), scales).to(dtype)


def quantise_rows(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Rows [n, ...] divided by their scales [n] in float32, as float8_e4m3fn: saturating, nearest even."""
    return _to_fp8(rows.float() / _column(scales, rows))


def dequantise_rows(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float8_e4m3fn rows [n, ...] times their scales [n], as float32."""
    return rows.float() * _column(scales, rows)


def fake_quantise_rows(rows: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """What is left of rows [n, ...] after FP8 with a scale per row, as float32. dtype: as in :func:`row_scales`."""
    scales = row_scales(rows, dtype)
    return dequantise_rows(quantise_rows(rows, scales), scales)


def fake_quantise(values: torch.Tensor, scale: float) -> torch.Tensor:
    """What is left of ``values`` of any shape after FP8 with one scale > 0; computed in float32, in their own dtype."""
    import torch

    step = torch.full(
        (), scale, dtype=torch.float32, device=values.device
    )  # a number would be inverted on some devices
    return (_to_fp8(values.float() / step).float() * step).to(values.dtype)


def activation_scale(amax: float) -> float:
    """The scale of an activation whose magnitudes are to be kept up to ``amax`` >= 0; 1 where that is zero."""
    return amax / FP8_MAX if amax > 0.0 else 1.0


def round_up(value: float, digits: int) -> float:
    """A measured value >= 0, rounded up to so many significant digits: the rest depends on the machine."""
    if value == 0.0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / unit) * unit:.{digits - 1}e}")


def _to_fp8(values: torch.Tensor) -> torch.Tensor:
    """Cast with saturation: torch's own cast gives NaN beyond the range in some versions."""
    import torch

    return values.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def _column(scales: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return scales.float().reshape(-1, *[1] * (rows.ndim - 1))
