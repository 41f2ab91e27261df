"""Dropout whose draws belong to an image, not to the process that has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@torch.library.custom_op("arcflow::keep_rows", mutates_args=())
def keep_rows(like: Tensor, seeds: Tensor, p: float) -> Tensor:
    """Which values of ``like`` [B, ...] stay, bool: each is dropped with probability p, by its row's seed (int64 [B]).

    An operator of its own, so that torch.compile need not look into generators.
    """
    kept = torch.empty(like.shape, dtype=torch.bool, device=like.device)
    for row, seed in zip(kept, seeds.tolist(), strict=True):
        row.bernoulli_(1.0 - p, generator=torch.Generator(like.device).manual_seed(seed))
    return kept


@keep_rows.register_fake
def _(like: Tensor, seeds: Tensor, p: float) -> Tensor:
    return torch.empty_like(like, dtype=torch.bool)


class RowDropout(nn.Module):
    """Dropout of x [B, ...] with a generator for each row, seeded before the forward by :meth:`seed`.

    So an image has the same draws whatever batch and process it is in, and a block that is run again in the backward
    has them too. Without seeds it is torch's own dropout. layer: its number, so that no two layers draw alike.
    """

    seeds: Tensor | None

    def __init__(self, p: float, layer: int) -> None:
        super().__init__()
        self.p, self.layer = p, layer
        self.seeds = None

    def seed(self, rows: Tensor) -> None:
        """rows: a number for each row of the coming forwards, int64 [B], below 2**62."""
        self.seeds = rows + self.layer

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.seeds is None:
            return F.dropout(x, self.p, self.training)
        kept: Tensor = keep_rows(x.detach(), self.seeds, self.p)
        return torch.where(kept, x, 0.0) * (1.0 / (1.0 - self.p))
