"""AdamW in 8 bits, from torchao where it is installed: it trains, and a run that is continued goes on alike."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from arcflow.errors import RecipeError
from arcflow.recipe import LoopConfig
from arcflow.training.loop import Iteration, fit
from arcflow.training.optimizer import make_optimizer

LOOP = LoopConfig(iterations=7, batch=1, lr=1e-2, warmup=0, ema_gamma=7.0, save_every=3, optimizer="adamw8bit")


def _step(module: nn.Module, it: Iteration) -> dict[str, float]:
    x = torch.randn(8, 64, generator=it.generator)
    loss = (module(x) - 3.0 * x.repeat(1, 2)).square().mean()
    loss.backward()
    return {"loss": float(loss.detach())}


def _linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(64, 128)


def _weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_without_torchao_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(RecipeError, match="pip install torchao"):
        make_optimizer([{"params": list(_linear().parameters())}], LOOP)


def test_moments_in_8_bits_train_and_are_continued(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    whole = fit(_linear(), _step, LOOP, tmp_path / "a")
    usual = fit(_linear(), _step, replace(LOOP, optimizer="adamw"), tmp_path / "b")
    change, wanted = _weights(whole) - _weights(_linear()), _weights(usual) - _weights(_linear())
    assert 0 < float((change - wanted).norm() / wanted.norm()) < 0.1
    fit(_linear(), _step, LOOP, tmp_path / "c", stop_after=4)  # One iteration is lost.
    assert torch.equal(_weights(fit(_linear(), _step, LOOP, tmp_path / "c")), _weights(whole))
