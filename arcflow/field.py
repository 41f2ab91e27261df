"""The momentum field and its closed-form solution (arXiv 2602.09014).

Inside a segment that starts at noise level ``sigma_src`` the velocity is a mixture of K modes, each of which grows
or decays exponentially as the noise level falls:

    u(sigma) = sum_k pi_k * v_k * exp(l_k * (sigma_src - sigma)),     l_0 = 0

so the displacement between any two levels of the segment has a closed form and costs no network evaluation.
Everything works on packed tokens, differentiates, and computes in float32 or better whatever the input's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

Level = Tensor | float
"""A noise level, the same for all rows or [B]."""

_SERIES_BELOW = 0.5
"""|z| under which phi1 is summed as a series: there expm1(z)/z and, more so, its derivative lose digits."""

_SERIES_TERMS = 16
"""Terms of the series: 0.5**16 / 17! is far below the last digit of float64."""


class Motion(Protocol):
    """How a student's state moves through a segment, known from one evaluation at its start.

    States are packed tokens [B, S, C]; levels lie in the segment, one for all rows or [B].
    """

    def velocity(self, x: Tensor, sigma: Level) -> Tensor:
        """dx/dsigma at a state ``x`` of level ``sigma``."""

    def displacement(self, x: Tensor, sigma_a: Level, sigma_b: Level) -> Tensor:
        """x(sigma_b) - x, from a state ``x`` of level ``sigma_a`` down to ``sigma_b``."""

    def mean_velocity(self, x: Tensor, sigma_a: Level, sigma_b: Level) -> Tensor:
        """The average velocity on that way; the local one where both levels meet."""


class Prediction(Protocol):
    """What an evaluation of a student gives, whatever its head: a motion, once it is known where the segment starts."""

    @property
    def modes(self) -> int:
        """How many parts :meth:`drop_modes` chooses from."""

    def detach(self) -> Self:
        """The same, cut from the graph."""

    def drop_modes(self, keep: Tensor) -> Self:
        """The same without the modes where ``keep`` ([B, 1, modes, 1], bool) is False; itself where it has no such."""

    def motion(self, x_src: Tensor, sigma_src: Level) -> Motion:
        """The motion from the state ``x_src`` [B, S, C] at ``sigma_src`` that was evaluated."""


@dataclass(frozen=True)
class MomentumField:
    """What one network evaluation predicts for a segment, per token.

    means: [B, S, K, C] velocities v_k at the segment's start, C packed channels (index c*4 + p).
    logweights: [B, S, K, P] log of the gates pi_k (log-softmax over K), P patch positions shared by the C/P channels.
    loggammas: [B, S, K-1, P] l_k = ln(gamma_k) of modes 1..K-1; mode 0 is a straight line (l_0 = 0).
    """

    means: Tensor
    logweights: Tensor
    loggammas: Tensor

    @property
    def modes(self) -> int:
        """K, the number of modes."""
        return self.means.shape[-2]

    def detach(self) -> MomentumField:
        """The same field, cut from the graph."""
        return MomentumField(self.means.detach(), self.logweights.detach(), self.loggammas.detach())

    def drop_modes(self, keep: Tensor) -> MomentumField:
        """The field with the modes where ``keep`` ([B, 1, K, 1] or broadcastable, bool) is False taken out.

        The gates of the remaining modes are normalised anew. Every row must keep one mode at least.
        """
        logweights = self.logweights.masked_fill(~keep, float("-inf"))
        return MomentumField(self.means, torch.log_softmax(logweights, dim=-2), self.loggammas)

    def motion(self, x_src: Tensor, sigma_src: Level) -> MomentumMotion:
        """The motion through the segment that starts at ``sigma_src``; where the state is does not matter to it."""
        return MomentumMotion(self, sigma_src)


@dataclass(frozen=True)
class MomentumMotion:
    """The closed form of a field in the segment that starts at ``sigma_src``: a :class:`Motion`."""

    field: MomentumField
    sigma_src: Level

    def velocity(self, x: Tensor, sigma: Level) -> Tensor:
        return velocity(self.field, self.sigma_src, sigma)

    def displacement(self, x: Tensor, sigma_a: Level, sigma_b: Level) -> Tensor:
        return displacement(self.field, self.sigma_src, sigma_a, sigma_b)

    def mean_velocity(self, x: Tensor, sigma_a: Level, sigma_b: Level) -> Tensor:
        return mean_velocity(self.field, self.sigma_src, sigma_a, sigma_b)


def phi1(z: Tensor) -> Tensor:
    """(e^z - 1) / z with phi1(0) = 1, smooth in value and in every derivative. float32 or float64 in and out."""
    small = z.abs() < _SERIES_BELOW
    near = torch.where(small, z, torch.zeros_like(z))
    series = torch.ones_like(near)
    for n in range(_SERIES_TERMS, 1, -1):
        series = 1.0 + near / n * series
    far = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, series, torch.expm1(far) / far)


def velocity(field: MomentumField, sigma_src: Level, sigma: Level) -> Tensor:
    """Velocity u(sigma) [B, S, C] of the segment that starts at ``sigma_src``; levels are one or [B].

    Returns float32, or float64 where the field is float64.
    """
    v, pi, logs = _expand(field)
    elapsed = _level(sigma_src, v) - _level(sigma, v)
    return _mix(v, pi * torch.exp(logs * elapsed))


def displacement(field: MomentumField, sigma_src: Level, sigma_a: Level, sigma_b: Level) -> Tensor:
    """x(sigma_b) - x(sigma_a), [B, S, C], exact for sigma_src >= sigma_a >= sigma_b (one each, or [B]).

    -sum_k pi_k v_k exp(l_k (sigma_src - sigma_a)) D phi1(l_k D) with D = sigma_a - sigma_b. With one mode this is
    an Euler step. Returns float32, or float64 where the field is float64.
    """
    v, pi, logs = _expand(field)
    start = _level(sigma_src, v) - _level(sigma_a, v)
    span = _level(sigma_a, v) - _level(sigma_b, v)
    return -_mix(v, pi * torch.exp(logs * start) * span * phi1(logs * span))


def mean_velocity(field: MomentumField, sigma_src: Level, sigma_a: Level, sigma_b: Level) -> Tensor:
    """Average of the velocity over [sigma_b, sigma_a], [B, S, C]; the local velocity where the two levels meet."""
    v, pi, logs = _expand(field)
    start = _level(sigma_src, v) - _level(sigma_a, v)
    span = _level(sigma_a, v) - _level(sigma_b, v)
    return _mix(v, pi * torch.exp(logs * start) * phi1(logs * span))


def _expand(field: MomentumField) -> tuple[Tensor, Tensor, Tensor]:
    """(means as [B, S, K, C/P, P], gates [B, S, K, P], log gammas [B, S, K, P] with mode 0), in working precision."""
    dtype = torch.promote_types(field.means.dtype, torch.float32)
    positions = field.logweights.shape[-1]
    v = field.means.to(dtype).unflatten(-1, (-1, positions))
    logs = torch.nn.functional.pad(field.loggammas.to(dtype), (0, 0, 1, 0))
    return v, field.logweights.to(dtype).exp(), logs


def _mix(v: Tensor, coefficients: Tensor) -> Tensor:
    """sum_k coefficients_k v_k: [B, S, K, C/P, P] with [B, S, K, P] -> [B, S, C]."""
    return torch.einsum("bskcp,bskp->bscp", v, coefficients).flatten(-2)


def _level(sigma: Level, v: Tensor) -> Tensor:
    """A noise level ready to broadcast against [B, S, K, P]."""
    sigma = torch.as_tensor(sigma, dtype=v.dtype, device=v.device)
    return sigma.reshape(-1, 1, 1, 1) if sigma.ndim else sigma
