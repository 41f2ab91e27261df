"""What calibration remembers of a layer's inputs: the greatest magnitude, and a histogram of magnitudes.

The histogram is exact and cheap: a bin is a range of float32 bit patterns, 32 to an octave, so filling it takes a shift
and a count, and nothing has to be known of the range beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from export.errors import CalibrationError
from export.fp8.numbers import FP8_MAX

if TYPE_CHECKING:
    import torch

_SHIFT = 18
"""Bits of a float32 pattern that a bin leaves open: 23 of the mantissa less 5, that is 32 bins an octave."""

BINS = 1 << (31 - _SHIFT)
"""Bins for every non-negative float32."""

_MSE_STEPS, _MSE_OCTAVES = 16, 6
"""Candidates of the mse method: 16 an octave, from the amax down over 6 octaves."""

_SUBSAMPLES = 4
"""Values a bin stands for in the mse method, spread over it: one alone would meet FP8's grid in step."""


class Method(StrEnum):
    """How a layer's scale follows from its inputs.

    AMAX: nothing saturates; PERCENTILE: a stated share of magnitudes lies within; MSE: least mean squared error.
    """

    AMAX = "amax"
    PERCENTILE = "percentile"
    MSE = "mse"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An observer as plain data: the figures, and the filled bins as (index, count), or None for no histogram."""

    amax: float
    values: int
    bins: Sequence[tuple[int, int]] | None


@dataclass
class Observer:
    """Inputs of one layer, as they stream by.

    amax: greatest magnitude; values: how many were seen; counts: int64 [BINS], or None where no histogram is kept.
    """

    amax: float = 0.0
    values: int = 0
    counts: torch.Tensor | None = field(default=None, repr=False)

    def see(self, values: torch.Tensor, histogram: bool) -> None:
        """Take in a tensor of any shape and floating type. Raises CalibrationError where a value is not finite."""
        import torch

        magnitudes = values.detach().abs().float().flatten()
        if magnitudes.numel() == 0:
            return
        amax = float(magnitudes.max())
        if not math.isfinite(amax):
            raise CalibrationError("an input has values that are not finite; check the student, or use --dtype float32")
        bins = torch.bincount(magnitudes.view(torch.int32) >> _SHIFT, minlength=BINS).cpu() if histogram else None
        self.add(Observer(amax, magnitudes.numel(), bins))

    def add(self, other: Observer) -> None:
        """Take in what another observer has seen."""
        self.amax = max(self.amax, other.amax)
        self.values += other.values
        if other.counts is not None:
            self.counts = other.counts.clone() if self.counts is None else self.counts + other.counts

    def bound(self, method: Method, percentile: float) -> float:
        """The magnitude up to which values are kept, <= amax. percentile: in (0, 100], for that method alone."""
        if method is Method.AMAX or self.counts is None or self.amax == 0.0:
            return self.amax
        if method is Method.PERCENTILE:
            return min(self.amax, _percentile(self.counts, percentile))
        return _least_squares(self.counts, self.amax)

    def to_record(self) -> Record:
        """What a file keeps of it."""
        bins = None
        if self.counts is not None:
            filled = self.counts.nonzero().flatten()
            bins = list(zip(filled.tolist(), self.counts[filled].tolist(), strict=True))
        return Record(self.amax, self.values, bins)

    @classmethod
    def from_record(cls, record: Record) -> Observer:
        """The inverse of :meth:`to_record`. Raises IndexError for a bin that is none."""
        import torch

        counts = None
        if record.bins is not None:
            counts = torch.zeros(BINS, dtype=torch.int64)
            for index, count in record.bins:
                counts[index] = count
        return cls(record.amax, record.values, counts)


def _edges() -> torch.Tensor:
    """Lower edges [BINS + 1] of the bins, float64; the last bins are beyond float32's range and stay empty."""
    import torch

    patterns = torch.arange(BINS + 1, dtype=torch.int64).clamp(max=(0x7F800000 >> _SHIFT)) << _SHIFT
    return patterns.to(torch.int32).view(torch.float32).double()


def _percentile(counts: torch.Tensor, percentile: float) -> float:
    """Upper edge of the bin in which that percentile of the magnitudes falls."""
    import torch

    total = counts.cumsum(0)
    wanted = math.ceil(int(total[-1]) * percentile / 100.0)
    index = int(torch.searchsorted(total, torch.tensor(max(wanted, 1))))
    return float(_edges()[index + 1])


def _least_squares(counts: torch.Tensor, amax: float) -> float:
    """The bound among the candidates whose FP8 leaves the least squared error of the histogram's values."""
    import torch

    from export.fp8.numbers import fake_quantise

    filled = counts.nonzero().flatten()
    edges = _edges()
    low, high = edges[filled], edges[filled + 1].clamp(max=amax)
    places = (torch.arange(_SUBSAMPLES, dtype=torch.float64) + 0.5) / _SUBSAMPLES
    values = (low[:, None] + (high - low).clamp(min=0)[:, None] * places).float()
    weight = counts[filled].double()[:, None]
    candidates = [amax * 2.0 ** (-step / _MSE_STEPS) for step in range(_MSE_STEPS * _MSE_OCTAVES)]
    errors = [
        float((weight * (fake_quantise(values, candidate / FP8_MAX) - values).double().square()).sum())
        for candidate in candidates
    ]
    best: float = min(zip(errors, candidates, strict=True))[1]
    return best
