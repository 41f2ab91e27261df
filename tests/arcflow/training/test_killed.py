"""A real SIGKILL in the middle of ``python -m arcflow.distill``, and the run that continues it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def short_recipe(folder: Path) -> Path:
    """The tiny recipe with 60 short iterations."""
    loop = "iterations = 60, batch = 4, lr = 1e-3, save_every = 5, warmup = 5, precision = 'fp32'"
    path = folder / "short.toml"
    path.write_text(
        f"extends = 'tiny'\nname = 'short'\n[distill]\nteacher_share_iterations = 30\nloop = {{ {loop} }}\n"
    )
    return path


def command(recipe: Path, teacher: Path, folder: Path) -> list[str]:
    arguments = {"--recipe": recipe, "--teacher": teacher, "--workdir": folder / "work", "--out": folder / "out"}
    options = [text for pair in arguments.items() for text in map(str, pair)]
    return [sys.executable, "-m", "arcflow.distill", *options]


def test_a_killed_run_continues_to_the_same_bytes(teacher_path: Path, tmp_path: Path) -> None:
    recipe = short_recipe(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(recipe, teacher_path, whole), cwd=ROOT, env=environment, check=True, capture_output=True)

    first = subprocess.Popen(
        command(recipe, teacher_path, broken), cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = broken / "work" / "distill-arcflow" / "checkpoints"
    while not list(checkpoints.glob("[1-9]*")) and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (broken / "out").exists(), "the run ended before it could be killed: make it longer"

    subprocess.run(command(recipe, teacher_path, broken), cwd=ROOT, env=environment, check=True, capture_output=True)
    assert (whole / "out" / WEIGHTS).read_bytes() == (broken / "out" / WEIGHTS).read_bytes()
