"""Exponential moving average of weights with the power schedule of Karras et al. (arXiv 2312.02696, eq. 123)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class PowerEma:
    """Average with decay ``(1 - 1/t) ** (gamma + 1)`` at update ``start + t``, t = 1, 2, ...

    The averaging window grows with training, so no decay has to be tuned; the first ``start`` + 1 updates copy the
    weights. Kept in float32 whatever the weights' dtype.
    """

    def __init__(self, parameters: Sequence[Tensor], gamma: float, start: int = 0) -> None:
        self.gamma, self.start = gamma, start
        self.updates = 0
        self.averages = [p.detach().float().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor]) -> None:
        """Fold the current weights in."""
        self.updates += 1
        decay = (1.0 - 1.0 / max(1, self.updates - self.start)) ** (self.gamma + 1.0)
        for average, parameter in zip(self.averages, parameters, strict=True):
            average.lerp_(parameter.detach().float(), 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: Sequence[Tensor]) -> None:
        """Overwrite ``parameters`` with the averages."""
        for average, parameter in zip(self.averages, parameters, strict=True):
            parameter.copy_(average)

    @contextmanager
    def swapped(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """``parameters`` are the averages inside the block, and to the bit what they were after it."""
        kept = [parameter.detach().clone() for parameter in parameters]
        self.copy_to(parameters)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, own in zip(parameters, kept, strict=True):
                    parameter.copy_(own)
