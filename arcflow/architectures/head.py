"""The momentum head: what replaces the backbone's last linear."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from arcflow.field import MomentumField

PATCH_POSITIONS = 4
"""Positions of a 2x2 patch; gates and gammas are predicted per position and shared by the channels."""


class MomentumHead(nn.Module):
    """Three linears on the normed token features, a drop-in for the backbone's ``proj_out``.

    diffusers' own forward calls ``proj_out`` last and returns what it returns, so a backbone with this head returns
    the momentum field instead of a velocity and nothing of that forward has to be copied.
    """

    def __init__(self, features: int, packed_channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.packed_channels = packed_channels
        self.means = nn.Linear(features, modes * packed_channels)
        self.logweights = nn.Linear(features, modes * PATCH_POSITIONS)
        with warnings.catch_warnings():
            # the linear student's head (one mode) has no gammas: an empty linear is meant
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.loggammas = nn.Linear(features, (modes - 1) * PATCH_POSITIONS)

    @classmethod
    def from_teacher(
        cls,
        proj_out: nn.Linear,
        modes: int,
        bias_std: float,
        gamma_range: tuple[float, float],
        gate_span: float = 0.0,
    ) -> MomentumHead:
        """A head that starts as the teacher: every mode its velocity plus a small bias, spread gammas, equal gates.

        bias_std: standard deviation of the bias per mode and channel (equal over the 4 patch positions), drawn from
        the global generator; gamma_range: ends of the modes - 1 log-spaced gammas; gate_span: gates of gammas above 1
        start at gamma^-gate_span of the others'.
        """
        head = cls(proj_out.in_features, proj_out.out_features, modes)
        with torch.no_grad():
            head.means.weight.copy_(proj_out.weight.repeat(modes, 1))
            head.means.bias.copy_(proj_out.bias.repeat(modes))
            if modes > 1:
                jitter = bias_std * torch.randn(modes, proj_out.out_features // PATCH_POSITIONS, 1)
                head.means.bias.add_(jitter.expand(-1, -1, PATCH_POSITIONS).reshape(-1))
            nn.init.zeros_(head.logweights.weight)
            nn.init.zeros_(head.loggammas.weight)
            logs = torch.linspace(math.log(gamma_range[0]), math.log(gamma_range[1]), max(modes - 1, 0))
            head.loggammas.bias.copy_(logs.repeat_interleave(PATCH_POSITIONS))
            gates = -gate_span * nn.functional.pad(logs, (1, 0)).clamp(min=0.0)
            head.logweights.bias.copy_(gates.repeat_interleave(PATCH_POSITIONS))
        return head

    def forward(self, features: Tensor) -> MomentumField:
        """Predict the field of ``features`` [B, S, D], in float32 or better.

        means [B, S, K, C], logweights [B, S, K, 4] (log-softmax over K), loggammas [B, S, K-1, 4].
        """
        b, s, _ = features.shape
        dtype = torch.promote_types(features.dtype, torch.float32)
        means = self.means(features).reshape(b, s, self.modes, self.packed_channels)
        logits = self.logweights(features).reshape(b, s, self.modes, PATCH_POSITIONS)
        loggammas = self.loggammas(features).reshape(b, s, self.modes - 1, PATCH_POSITIONS)
        return MomentumField(
            means.to(dtype),
            torch.log_softmax(logits.to(dtype), dim=-2),
            loggammas.to(dtype),
        )
