"""The training loop: gradients that are not finite, exchanges between processes, and what a person is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import nn

from arcflow.errors import CheckpointError
from arcflow.recipe import LoopConfig
from arcflow.training.loop import MOST_SKIPPED, Iteration, Step, fit
from arcflow.training.progress import reporting
from tests.arcflow.training.exchanges import ITERATIONS

ROOT = Path(__file__).parents[3]
LOOP = LoopConfig(iterations=6, batch=1, lr=0.1, warmup=0, ema_gamma=7.0, save_every=1)


def _step(bad: Collection[int]) -> Step:
    def step(module: nn.Module, it: Iteration) -> dict[str, float]:
        loss = (module(torch.ones(1, 2)) - it.index).square().sum()
        (loss * float("nan") if it.index in bad else loss).backward()
        return {"loss": float(loss.detach())}

    return step


def _linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 1)


def _weights(module: nn.Module) -> list[float]:
    return [float(value) for parameter in module.parameters() for value in parameter.detach().flatten()]


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    shown: list[dict[str, float]] = []
    states = []

    def report(done: int, figures: dict[str, float]) -> None:
        shown.append(figures)
        states.append(_weights(module))

    module = _linear()
    fit(module, _step({2, 4}), LOOP, tmp_path / "whole", report=report)
    assert [figures.get("skipped", 0) for figures in shown] == [0, 0, 1, 1, 2, 2]
    assert states[2] == states[1] and states[4] == states[3] and states[3] != states[2]
    assert all(value == value for value in _weights(module))

    resumed = _linear()
    fit(resumed, _step({2, 4}), LOOP, tmp_path / "cut", stop_after=3)
    resumed = _linear()
    shown.clear()
    fit(resumed, _step({2, 4}), LOOP, tmp_path / "cut", report=report)
    assert [figures["skipped"] for figures in shown] == [1, 2, 2]
    assert _weights(resumed) == _weights(module)


def test_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    loop = LoopConfig(iterations=100, batch=1, lr=0.1, warmup=0)
    bad = range(3, 3 + MOST_SKIPPED)
    with pytest.raises(CheckpointError, match=f"{MOST_SKIPPED} iterations in a row, the last of them {bad[-1] + 1}"):
        fit(_linear(), _step(bad), loop, tmp_path / "many")
    fit(_linear(), _step(bad[1:]), loop, tmp_path / "one fewer")


def test_processes_exchange_gradients_once_an_iteration(tmp_path: Path) -> None:
    """Two of them, over gloo, on a step of several segments: one bucket an iteration, and equal weights."""
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.arcflow.training.exchanges",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    made = subprocess.run(
        [sys.executable, *command, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["processes"] == 2
    assert first["exchanges"] == list(range(1, ITERATIONS + 1))
    assert first == second


def test_only_the_loss_is_smoothed(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting("run", 2) as report:
        report(1, {"loss": 1.0, "teacher_share": 1.0, "lr": 1e-5})
        report(2, {"loss": 2.0, "teacher_share": 0.0, "lr": 4e-5})
    shown = " ".join(capsys.readouterr().err.split())
    assert "run 2/2 loss 1.02 teacher_share 0 lr 4e-05" in shown
