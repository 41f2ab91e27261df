"""What a run leaves for TensorBoard and for Weights & Biases, and what its lines say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcflow import distill
from arcflow.errors import TrackingError
from arcflow.training.progress import reporting
from arcflow.training.tracking import IMAGE, WandB, check_wandb
from foundation.cli import run

GRID = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
LOOKS = {6: 0.5, 12: 0.25}


def has_wandb() -> bool:
    try:
        check_wandb()
    except TrackingError:
        return False
    return True


def report_all(logdir: Path, wandb: WandB | None = None, first: int = 1) -> None:
    """Iterations up to 13 of 13, with looks at 6 and 12."""
    with reporting("run", 13, logdir, wandb=wandb) as report:
        for done in range(first, 14):
            figures = {"loss": float(done), "norm": 2.0, "lr": 1e-4, "lr_gammas": 1e-5}
            if done in LOOKS:
                report(done, {**figures, "held_out": LOOKS[done]}, GRID)
            else:
                report(done, figures)


def test_tensorboard_has_every_figure_and_every_grid(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report_all(tmp_path)
    found = EventAccumulator(str(tmp_path)).Reload()
    scalars = {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}
    assert set(scalars) == {f"run/{name}" for name in ("loss", "norm", "lr", "lr_gammas", "held_out")}
    assert scalars["run/held_out"] == LOOKS and list(scalars["run/loss"]) == [6, 10, 12, 13]
    assert scalars["run/lr_gammas"][13] == pytest.approx(1e-5)
    images = found.Images(f"run/{IMAGE}")
    assert [event.step for event in images] == [6, 12] and (images[0].width, images[0].height) == (6, 4)


def test_the_last_look_stays_in_sight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_all(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["6/13", "12/13", "13/13"]
    assert "norm 2  lr 0.0001  lr_gammas 1e-05  held_out 0.5" in lines[0] and lines[0].endswith("s left")
    assert "held_out 0.25" in lines[2]


def test_a_run_that_is_continued_tells_the_time_from_there(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting("run", 10_000) as report:
        for done in (9_899, 9_900):
            report(done, {"loss": 1.0})
    seconds = int(capsys.readouterr().err.split()[-3])
    assert seconds < 100 * 10  # A hundred iterations of at most ten seconds each.


@pytest.mark.skipif(not has_wandb(), reason="wandb is not installed")
def test_weights_and_biases_has_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    target = WandB("arcflow-test", "tiny-arcflow", {"shift": 1.7, "distill": {"nfe": 2}})
    for first in (1, 7):  # The second time as a run that is continued.
        report_all(tmp_path, target, first)
    wandb.teardown()  # Its own process has written everything.
    assert capfd.readouterr().out == ""
    identity = (tmp_path / "wandb.id").read_text().strip()
    runs = list(tmp_path.glob("wandb/offline-run-*"))
    assert len(runs) == 2 and all(identity in path.name for path in runs)
    for path in runs:
        sent = (path / f"run-{identity}.wandb").read_bytes()
        assert all(name in sent for name in (b"lr_gammas", b"held_out", b"tiny-arcflow", b"arcflow-test"))
    images = list(tmp_path.glob("wandb/offline-run-*/files/media/images/*.png"))
    assert len(images) == 3
    for path in images:
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), GRID)


@pytest.mark.skipif(has_wandb(), reason="wandb is installed")
def test_asked_for_and_not_installed_is_one_line_and_exit_2(
    teacher_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    options = ["--base", str(teacher_path), "--workdir", str(work), "--wandb", "arcflow"]
    assert run(distill.main, ["--recipe", "tiny", *options]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "`pip install wandb`" in message and not work.exists()
