"""Noise levels of a sampling run: the shifted schedule for any number of evaluations and final-step ratio."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor

from arcflow.errors import RecipeError

Level = TypeVar("Level", float, Tensor)


def shift_sigma(t: Level, shift: float) -> Level:
    """Noise level of raw time ``t`` in [0, 1]: sigma = s*t / (1 + (s - 1)*t) (arXiv 2403.03206, eq. 23)."""
    return shift * t / (1.0 + (shift - 1.0) * t)


def raw_time(sigma: Level, shift: float) -> Level:
    """Raw time of a noise level in [0, 1]: the inverse of :func:`shift_sigma`, t = sigma / (s - (s - 1)*sigma)."""
    return sigma / (shift - (shift - 1.0) * sigma)


def raw_times(nfe: int, final_step_ratio: float = 1.0) -> tuple[float, ...]:
    """Raw times at which the network is evaluated, and 0 at the end: nfe + 1 values from 1 down to 0.

    Every segment is ``1 / (nfe - 1 + r)`` long, but the last one, which is ``r`` times that.
    Raises RecipeError unless nfe >= 1 and 0 < r < infinity.
    """
    if nfe < 1:
        raise RecipeError(f"nfe is {nfe}: at least 1 evaluation is needed")
    if not (final_step_ratio > 0.0 and math.isfinite(final_step_ratio)):
        raise RecipeError(f"final_step_ratio is {final_step_ratio}: it must be positive and finite")
    base = 1.0 / (nfe - 1 + final_step_ratio)
    return (*(1.0 - i * base for i in range(nfe)), 0.0)


def sigmas(nfe: int, shift: float, final_step_ratio: float = 1.0) -> tuple[float, ...]:
    """Noise levels of :func:`raw_times`: nfe + 1 values from 1 down to 0. Raises RecipeError unless shift > 0."""
    if not (shift > 0.0 and math.isfinite(shift)):
        raise RecipeError(f"shift is {shift}: it must be positive and finite")
    return tuple(shift_sigma(t, shift) for t in raw_times(nfe, final_step_ratio))
