"""pi-Flow (arXiv 2510.14974): the velocity of a Gaussian mixture, rolled out in small steps without the network.

One evaluation at x_src, sigma_src gives a mixture of the clean state, p(x0 | x_src) = sum_k w_k N(mu_k, s^2), with
mu_k = x_src - sigma_src v_k: gates a patch position, channels independent, one s an image (the mixture is GMFlow's,
arXiv 2504.05304). At another state x of a lower level Bayes' rule gives p(x0 | x, x_src), whose mean x0(x) makes the
velocity (x - x0(x)) / sigma. With a = 1 - sigma, a_src = 1 - sigma_src, V = s^2 and

    L = a^2 - a_src^2 sigma^2 / sigma_src^2,     e = a x - a_src x_src sigma^2 / sigma_src^2,     d = sigma^2 + V L

it is x0(x) = (sigma^2 sum_k w'_k mu_k + V e) / d with w'_k ~ w_k exp((mu_k . e - |mu_k|^2 L / 2) / d): no difference
of near numbers is divided by. The state moves by Euler steps of this velocity, ``substeps`` of them to raw time 1.
Imitation and mixed trajectory are those that ArcFlow took over (``segment_loss``).

How the mixture's widths begin is not in what was to be had of the paper: here s = 0.1 sigma_src.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arcflow.architectures.head import PATCH_POSITIONS
from arcflow.field import Level
from arcflow.schedule import raw_time, shift_sigma

FIRST_STD = 0.1
"""Standard deviation of each Gaussian at the start of training, in units of sigma_src."""
_SHORT = 1e-6
"""Spans of sigma below which a mean velocity is the local one."""


@dataclass(frozen=True)
class Mixture:
    """A prediction: means [B, S, K, C] (velocities v_k), logweights [B, S, K, P] (of gates w_k), logstds [B].

    All float32 or float64; shift: the schedule's, in whose raw time the ``substeps`` are equal.
    """

    means: Tensor
    logweights: Tensor
    logstds: Tensor
    shift: float
    substeps: int

    @property
    def modes(self) -> int:
        """K, the number of Gaussians."""
        return self.means.shape[-2]

    def detach(self) -> Mixture:
        parts = (self.means.detach(), self.logweights.detach(), self.logstds.detach())
        return Mixture(*parts, self.shift, self.substeps)

    def drop_modes(self, keep: Tensor) -> Mixture:
        logweights = torch.log_softmax(self.logweights.masked_fill(~keep, float("-inf")), dim=-2)
        return Mixture(self.means, logweights, self.logstds, self.shift, self.substeps)

    def motion(self, x_src: Tensor, sigma_src: Level) -> MixtureMotion:
        return MixtureMotion(self, x_src, sigma_src)


class MixtureMotion:
    """The rollout of a mixture from ``x_src`` [B, S, C] at ``sigma_src``: a :class:`arcflow.field.Motion`."""

    def __init__(self, field: Mixture, x_src: Tensor, sigma_src: Level) -> None:
        self._field, self._positions = field, field.logweights.shape[-1]
        self._src = self._level(sigma_src)
        self._x_src = x_src.to(field.means.dtype)
        mu = self._x_src[:, :, None] - self._src[..., None] * field.means
        self._mu = mu.unflatten(-1, (-1, self._positions))
        self._squares = self._mu.square().sum(dim=-2)
        self._variance = (2.0 * field.logstds).exp().reshape(-1, 1, 1) * self._src.square()

    def velocity(self, x: Tensor, sigma: Level) -> Tensor:
        level = self._level(sigma)
        fraction = (level / self._src).square()
        alpha, alpha_src = 1.0 - level, 1.0 - self._src
        precision = alpha.square() - alpha_src.square() * fraction
        shifted = alpha * x - alpha_src * fraction * self._x_src
        divisor = level.square() + self._variance * precision
        inner = torch.einsum("bskcp,bscp->bskp", self._mu, shifted.unflatten(-1, (-1, self._positions)))
        scores = (inner - 0.5 * precision[..., None] * self._squares) / divisor[..., None]
        weights = torch.softmax(self._field.logweights + scores, dim=-2)
        mean = torch.einsum("bskcp,bskp->bscp", self._mu, weights).flatten(-2)
        clean = (level.square() * mean + self._variance * shifted) / divisor
        return (x - clean) / level

    def displacement(self, x: Tensor, sigma_a: Level, sigma_b: Level) -> Tensor:
        """The rollout; all rows take as many steps, those that the longest way needs and one at least."""
        shift = self._field.shift
        t_a, t_b = (raw_time(self._level(sigma), shift) for sigma in (sigma_a, sigma_b))
        count = max(1, round(float((t_a - t_b).max()) * self._field.substeps))
        state, level = x, self._level(sigma_a)
        for step in range(1, count + 1):
            following = shift_sigma(t_a + (t_b - t_a) * (step / count), shift)
            state = state + self.velocity(state, level) * (following - level)
            level = following
        return state - x

    def mean_velocity(self, x: Tensor, sigma_a: Level, sigma_b: Level) -> Tensor:
        span = self._level(sigma_a) - self._level(sigma_b)
        mean = -self.displacement(x, sigma_a, sigma_b) / span.clamp(min=_SHORT)
        return torch.where(span > _SHORT, mean, self.velocity(x, sigma_a))

    def _level(self, sigma: Level) -> Tensor:
        means = self._field.means
        return torch.as_tensor(sigma, dtype=means.dtype, device=means.device).reshape(-1, 1, 1)


class MixtureHead(nn.Module):
    """Linears for velocities, gates and, of the mean of all tokens, the width: in the place of ``proj_out``.

    It starts as the teacher: every velocity the teacher's plus a small bias, equal gates.
    """

    def __init__(self, proj_out: nn.Linear, modes: int, bias_std: float, shift: float, substeps: int) -> None:
        """bias_std: of the bias a mode and channel, drawn from the global generator."""
        super().__init__()
        self.modes, self.shift, self.substeps = modes, shift, substeps
        features, channels = proj_out.in_features, proj_out.out_features
        self.means = nn.Linear(features, modes * channels)
        self.logweights = nn.Linear(features, modes * PATCH_POSITIONS)
        self.logstds = nn.Linear(features, 1)
        with torch.no_grad():
            self.means.weight.copy_(proj_out.weight.repeat(modes, 1))
            self.means.bias.copy_(proj_out.bias.repeat(modes))
            jitter = bias_std * torch.randn(modes, channels // PATCH_POSITIONS, 1)
            self.means.bias.add_(jitter.expand(-1, -1, PATCH_POSITIONS).reshape(-1))
            for zero in (self.logweights.weight, self.logweights.bias, self.logstds.weight):
                nn.init.zeros_(zero)
            nn.init.constant_(self.logstds.bias, math.log(FIRST_STD))

    def forward(self, features: Tensor) -> Mixture:
        """Features [B, S, D] to a mixture, in float32 or better."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        means = self.means(features).unflatten(-1, (self.modes, -1)).to(dtype)
        logits = self.logweights(features).unflatten(-1, (self.modes, -1)).to(dtype)
        logstds = self.logstds(features.mean(dim=1))[:, 0].to(dtype)
        return Mixture(means, torch.log_softmax(logits, dim=-2), logstds, self.shift, self.substeps)
