"""What a run computes in where its recipe leaves that open: measured once, said in a line, kept by its checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from arcflow.adapter import read_adapter
from arcflow.distill import choose_base, distil
from arcflow.errors import CheckpointError, RecipeError
from arcflow.recipe import LoopConfig, Recipe
from arcflow.training.loop import Iteration, Step, fit
from arcflow.training.precision import PAYS, choose, product_of, settle

LOOP = LoopConfig(iterations=4, batch=1, lr=0.1, warmup=0, save_every=2, precision="auto")
CPU = torch.device("cpu")


def _step(config: LoopConfig) -> Step:
    def step(module: nn.Module, it: Iteration) -> dict[str, float]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            loss = module(torch.full((1, 48), 0.1)).float().square().sum()
        loss.backward()
        return {"loss": float(loss.detach())}

    return step


def _settle(workdir: Path, config: LoopConfig = LOOP) -> tuple[LoopConfig, list[str]]:
    told: list[str] = []
    return settle(config, nn.Linear(48, 700), workdir, CPU, told.append), told


def test_it_is_measured_and_said_in_a_line(tmp_path: Path) -> None:
    settled, told = _settle(tmp_path / "flow")
    assert settled == replace(LOOP, precision=settled.precision) and settled.precision != "auto"
    (line,) = told
    assert line.startswith(f"flow computes in {settled.precision}: in bf16 a 512x48x512 matrix product takes ")
    half, single = (float(part.split()[-1]) for part in line.split(" ms")[:2])
    assert settled.precision == choose(single, half)


@pytest.mark.parametrize(("half", "precision"), [(0.4, "bf16"), (PAYS, "bf16"), (0.95, "fp32"), (100.0, "fp32")])
def test_bfloat16_must_pay(half: float, precision: str) -> None:
    assert choose(1.0, half) == precision


def test_a_product_is_of_the_largest_layer_and_not_of_an_embedding() -> None:
    module = nn.Sequential(nn.Embedding(5000, 96), nn.Linear(96, 200), nn.Conv2d(16, 32, 3))
    assert product_of(module) == (512, 96, 200)
    assert product_of(nn.Conv2d(128, 64, 3)) == (512, 512, 64)


@pytest.mark.parametrize("begun", ["fp32", "bf16"])
def test_a_run_that_is_continued_keeps_what_it_began_with(tmp_path: Path, begun: str) -> None:
    config = replace(LOOP, precision=begun)  # type: ignore[arg-type]
    fit(nn.Linear(48, 700), _step(config), config, tmp_path, stop_after=2)
    settled, told = _settle(tmp_path)
    assert (settled.precision, told) == (begun, [f"{tmp_path.name} computes in {begun}: as it began"])
    done: list[int] = []
    fit(nn.Linear(48, 700), _step(settled), settled, tmp_path, report=lambda i, *_: done.append(i))
    assert done == [3, 4]
    other = replace(LOOP, precision="bf16" if begun == "fp32" else "fp32")
    with pytest.raises(CheckpointError, match="other settings"):
        fit(nn.Linear(48, 700), _step(other), other, tmp_path)


def test_what_is_written_in_the_recipe_is_left_alone(tmp_path: Path) -> None:
    config = replace(LOOP, precision="fp32")
    assert _settle(tmp_path, config) == (config, [])


def test_a_damaged_state_is_refused_and_nothing_runs_undecided(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    (tmp_path / "checkpoints" / "2" / "run.json").write_text('{"done": 2}')
    with pytest.raises(CheckpointError, match="delete it to start again"):
        _settle(tmp_path)
    with pytest.raises(RecipeError, match='precision is "auto"'):
        fit(nn.Linear(48, 700), _step(LOOP), LOOP, tmp_path / "other")


def test_an_adapter_names_what_was_decided(
    recipe: Recipe, teacher_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = replace(recipe.distill.loop, iterations=2, batch=2, precision="auto")
    recipe = replace(recipe, distill=replace(recipe.distill, loop=loop, watch_every=0))
    base = choose_base(recipe, teacher_path, tmp_path)
    distil(recipe, base, ["a dog", "a rose"], recipe.student, tmp_path / "run", tmp_path / "adapter")
    dtype = read_adapter(tmp_path / "adapter").config.policy.conditioning_dtype
    assert f"run computes in {'bf16' if dtype == 'bfloat16' else 'fp32'}: " in capsys.readouterr().err
