"""Dropout by row: an image's draws are its own, wherever it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arcflow.architectures.dropout import RowDropout

SEEDS = torch.tensor([5, 2**61, 77])


def seeded(seeds: Tensor, layer: int = 0) -> RowDropout:
    dropout = RowDropout(0.25, layer)
    dropout.seed(seeds)
    return dropout


def test_a_row_is_dropped_alike_in_every_batch() -> None:
    x = torch.randn(3, 7, 11)
    whole = seeded(SEEDS)(x)
    assert torch.equal(whole, seeded(SEEDS)(x))
    assert torch.equal(whole[1:2], seeded(SEEDS[1:2])(x[1:2]))
    assert not torch.equal(whole != 0, seeded(SEEDS, layer=1)(x) != 0)


def test_what_stays_is_scaled_and_gradients_follow() -> None:
    x = torch.ones(3, 400, 50, dtype=torch.bfloat16, requires_grad=True)
    y = seeded(SEEDS)(x)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y.detach()) and y.dtype == torch.bfloat16
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(y.detach().float().max()) == pytest.approx(4 / 3, rel=1e-2)


def test_it_rests_outside_of_training_and_compiles() -> None:
    x = torch.randn(3, 5)
    dropout = seeded(SEEDS)
    compiled = torch.compile(dropout, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), dropout(x))
    assert torch.equal(dropout.eval()(x), x)
    torch.library.opcheck(torch.ops.arcflow.keep_rows, (x, SEEDS, 0.25))
