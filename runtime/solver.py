"""The closed-form solver in numpy: schedule, velocity and displacement of the momentum field (arXiv 2602.09014).

Inside a segment that starts at noise level ``sigma_src`` the velocity is a mixture of K modes,

    u(sigma) = sum_k pi_k * v_k * exp(l_k * (sigma_src - sigma)),     l_0 = 0,

so the displacement between any two levels of the segment is known without another network evaluation. Arrays are
packed tokens; index c*4 + p of a token is channel c at patch position p. The coefficients of the modes are computed
in float64 whatever the input (they are few); the mixture in the input's own precision, float32 or float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Level = float | Floats

_SERIES_BELOW = 1e-2
"""|z| under which phi1 is a Taylor polynomial: there the quotient of expm1 is 0/0 or loses the last digits."""

_SERIES = tuple(1.0 / math.factorial(n + 1) for n in range(8))
"""Coefficients of phi1 at 0; 0.01**8 / 9! is far below the last digit of float64."""


@dataclass(frozen=True)
class MomentumField:
    """What one evaluation of the backbone predicts for a segment, per token.

    means: [B, S, K, C] velocities v_k at the segment's start, C packed channels.
    logweights: [B, S, K, P] logarithms of the gates pi_k, P patch positions shared by the C/P channels.
    loggammas: [B, S, K-1, P] rates l_k of modes 1..K-1; mode 0 is a straight line.
    """

    means: Floats
    logweights: Floats
    loggammas: Floats


def phi1(z: Floats) -> NDArray[np.float64]:
    """(e^z - 1) / z with phi1(0) = 1, to the last digits of float64 on both sides of 0."""
    z = np.asarray(z, dtype=np.float64)
    small = np.abs(z) < _SERIES_BELOW
    far = np.where(small, 1.0, z)
    near = np.where(small, z, 0.0)
    return np.where(small, np.polynomial.polynomial.polyval(near, _SERIES), np.expm1(far) / far)


def displacement(field: MomentumField, sigma_src: Level, sigma_a: Level, sigma_b: Level) -> Floats:
    """x(sigma_b) - x(sigma_a), [B, S, C], exact for sigma_src >= sigma_a >= sigma_b (numbers or [B]).

    -sum_k pi_k v_k exp(l_k (sigma_src - sigma_a)) D phi1(l_k D) with D = sigma_a - sigma_b: one mode is an Euler step.
    """
    gates, rates = _coefficients(field)
    start = _level(sigma_src) - _level(sigma_a)
    span = _level(sigma_a) - _level(sigma_b)
    return -_mix(field.means, gates * np.exp(rates * start) * span * phi1(rates * span))


def raw_times(nfe: int, final_step_ratio: float = 1.0) -> tuple[float, ...]:
    """Raw times of the evaluations and 0 at the end: nfe + 1 values; the last segment is ``ratio`` times the others.

    Needs nfe >= 1 and final_step_ratio > 0 (the manifest and the request are checked before).
    """
    base = 1.0 / (nfe - 1 + final_step_ratio)
    return (*(1.0 - i * base for i in range(nfe)), 0.0)


def shift_sigma(t: float, shift: float) -> float:
    """Noise level of raw time ``t`` in [0, 1]: s*t / (1 + (s - 1)*t)."""
    return shift * t / (1.0 + (shift - 1.0) * t)


def sigmas(nfe: int, shift: float, final_step_ratio: float = 1.0) -> tuple[float, ...]:
    """Noise levels of :func:`raw_times`: nfe + 1 values from 1 down to 0."""
    return tuple(shift_sigma(t, shift) for t in raw_times(nfe, final_step_ratio))


def preview_sigmas(count: int, shift: float) -> tuple[float, ...]:
    """``count`` noise levels strictly between 1 and 0, falling, evenly spaced in raw time."""
    return tuple(shift_sigma(1.0 - (i + 1) / (count + 1), shift) for i in range(count))


def _coefficients(field: MomentumField) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gates and rates of all K modes, float64 [B, S, K, P]."""
    gates = np.exp(field.logweights.astype(np.float64))
    rates = np.zeros_like(gates)
    rates[:, :, 1:] = field.loggammas
    return gates, rates


def _mix(means: Floats, coefficients: NDArray[np.float64]) -> Floats:
    """sum_k coefficients_k v_k: [B, S, K, C] with [B, S, K, P] -> [B, S, C], in float32 or the means' own precision.

    Mode by mode in ascending order, product and sum rounded apart: C++ gets the same bits (core/numerics/solver.cpp).
    """
    dtype = np.promote_types(means.dtype, np.float32)
    modes, channels = means.shape[2:]
    v = means.astype(dtype, copy=False)
    rows = np.tile(coefficients.astype(dtype), channels // coefficients.shape[-1])
    mixed: Floats = v[:, :, 0] * rows[:, :, 0]
    for k in range(1, modes):
        mixed += v[:, :, k] * rows[:, :, k]
    return mixed


def _level(sigma: Level) -> NDArray[np.float64]:
    """A noise level, a number or [B], ready to broadcast against [B, S, K, P]."""
    level = np.asarray(sigma, dtype=np.float64)
    return level.reshape(-1, 1, 1, 1) if level.ndim else level
