"""Two real processes over gloo, each with all of the student (DDP) or its share of it (FSDP2), against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from arcflow.adapter import WEIGHTS_FILE
from arcflow.errors import BackboneError, RecipeError
from arcflow.training.loop import share_of
from arcflow.training.run import choose_accelerator
from tests.arcflow.training.processes import STOP, distil
from tests.export.pipelines import CAPTIONS, small_flux, small_qwen

ROOT = Path(__file__).parents[3]
FAMILIES = {"flux": small_flux, "qwen": small_qwen}
ITERATIONS = 6


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After all runs: alone, by two whole and sharded, and cut off sharded and continued alone."""
    folder = tmp_path_factory.mktemp(request.param)
    FAMILIES[request.param](folder)
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS), encoding="utf-8")
    loop = f"iterations = {ITERATIONS}, batch = 4, micro_batch = 1, lr = 1e-2, warmup = 2, save_every = {STOP}"
    (folder / "small.toml").write_text(
        f"extends = '{request.param}'\nname = 'small'\nbase = '{folder / 'base'}'\n[student]\nrank = 4\nmodes = 3\n"
        f"[distill]\nprompts = ['{folder / 'prompts.txt'}']\ntext_tokens = 16\nsizes = ['32x32', '48x32']\n"
        f"frozen = 'fp32'\nteacher_share_iterations = 4\nloop = {{ {loop}, precision = 'fp32' }}\n"
        "watch_every = 4\nwatch_images = 2\n[evaluate]\nreference_steps = 4\n"
    )
    # Without --multi_gpu Accelerate starts one process where there is no GPU, whatever --num_processes says.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "tests.arcflow.training.processes", str(folder)]
    command += ["whole", "shared+shard", "cut+shard+stop"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr[-3000:]
    distil(folder, "alone", sharded=False, stop=False)
    distil(folder, "cut", sharded=False, stop=False)
    return folder


def read(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"{name}.{rank}.json").read_text())  # type: ignore[no-any-return]


def adapter(folder: Path, name: str) -> torch.Tensor:
    """All values of an adapter, in a row."""
    from safetensors.torch import load_file

    found = load_file(folder / f"{name}-out" / WEIGHTS_FILE)
    return torch.cat([found[key].flatten() for key in sorted(found)])


@pytest.mark.parametrize("name", ["whole", "shared"])
def test_two_processes_train_the_student_of_one(folder: Path, name: str) -> None:
    alone, together = read(folder, "alone"), read(folder, name)
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert len(alone["losses"]) == ITERATIONS
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert together["trained"] == read(folder, name, 1)["trained"]
    wanted, found = adapter(folder, "alone"), adapter(folder, name)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("name", ["whole", "shared"])
def test_they_see_what_one_process_sees(folder: Path, name: str) -> None:
    alone, together = read(folder, "alone"), read(folder, name)
    assert len(alone["held_out"]) == 2 and read(folder, name, 1)["held_out"] == []
    assert together["held_out"] == pytest.approx(alone["held_out"], rel=1e-4)
    assert sorted(path.name for path in (folder / name / "looks").iterdir()) == ["000004.png", "000006.png"]


def test_a_run_of_two_is_continued_by_one(folder: Path) -> None:
    assert read(folder, "cut")["losses"] == pytest.approx(read(folder, "alone")["losses"][STOP:], rel=1e-5)
    wanted, found = adapter(folder, "alone"), adapter(folder, "cut")
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    assert [share_of(6, 3, process) for process in range(3)] == [range(2), range(2, 4), range(4, 6)]
    with pytest.raises(RecipeError, match="must be a multiple of 4"):
        share_of(6, 4, 0)


def test_one_process_has_nothing_to_share(folder: Path) -> None:
    with pytest.raises(RecipeError, match="several processes"):
        distil(folder, "nothing", sharded=True, stop=True)


def test_accelerates_own_sharding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(BackboneError, match="add --shard"):
        choose_accelerator("cpu")
