"""Numbers in FP8 (E4M3FN): divide by a scale, saturate, round to nearest even, as ONNX's QuantizeLinear makes them.

A weight has a scale a row, an activation one scale in all. Zero points do not exist in FP8: zero is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from arcflow.errors import BackboneError

if TYPE_CHECKING:
    import torch

FP8_MAX = 448.0
"""The greatest finite E4M3FN value. The format has no infinity; larger values saturate."""


def quantise_rows(weight: torch.Tensor, name: str = "a weight") -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [out, in] of any floating type as (float8_e4m3fn [out, in], scales [out, 1] float32).

    Some of its rows give those rows of the whole's. On torch's meta device shapes alone are made. Raises BackboneError,
    which names the weight, where a value is not finite.
    """
    scales = row_scales(weight)
    if not (scales.is_meta or bool(scales.isfinite().all())):
        raise BackboneError(f"{name} has values that are not finite; download the base again, or give another --base")
    return to_codes(weight, scales), scales[:, None]


def row_scales(rows: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Scales [n] of rows [n, ...] of any floating type: greatest magnitude / 448, and 1 for a row of zeros.

    dtype: the type in which the scales are stored (default: float32). The weights must be quantised with the scales as
    stored. A scale is never below the type's least normal number: zero would divide by zero, and engines flush what
    is subnormal. Values that are not finite give scales that are not finite.
    """
    import torch

    dtype = dtype or torch.float32
    if rows.numel() == 0:
        return torch.ones(rows.shape[0], dtype=dtype, device=rows.device)
    amax = rows.reshape(rows.shape[0], -1).abs().amax(dim=1).float()
    scales = (amax / FP8_MAX).clamp(min=torch.finfo(dtype).tiny)
    return torch.where(amax == 0.0, torch.ones_like(scales), scales).to(dtype)


def to_codes(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Rows [n, ...] divided by their scales [n] in float32, as float8_e4m3fn: saturating, nearest even."""
    return saturated(rows.float() / _column(scales, rows))


def from_codes(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """float8_e4m3fn rows [n, ...] times their scales, n of them, as ``dtype`` (default: float32), rounded once."""
    import torch

    # In place: computed in float32 at least, but with no float32 copy of the rows on a GPU.
    return codes.to(dtype or torch.float32, copy=True).mul_(_column(scales, codes))


def saturated(values: torch.Tensor) -> torch.Tensor:
    """Values as float8_e4m3fn, with saturation: torch's own cast gives NaN beyond the range in some versions."""
    import torch

    return values.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


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


def _column(scales: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return scales.float().reshape(-1, *[1] * (rows.ndim - 1))
