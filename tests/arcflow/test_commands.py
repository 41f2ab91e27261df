"""The commands as a person types them: help, one clear line on bad input, and a small run end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from arcflow import distill, study, teacher
from arcflow import evaluate as evaluate_command
from arcflow.distill import choose_base, choose_prompts, distil, student_recipe
from arcflow.evaluation.compare import evaluate, path_error
from arcflow.recipe import Recipe
from arcflow.tiny.classifier import Classifier
from arcflow.tiny.images import concepts
from arcflow.tiny.judging import open_judge
from arcflow.tiny.teacher_folder import open_teacher
from foundation.cli import run

COMMANDS = {
    "teacher": teacher.main, "distill": distill.main, "evaluate": evaluate_command.main, "study": study.main,
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        COMMANDS[name](["--help"])
    assert stop.value.code == 0
    assert f"python -m arcflow.{name} --recipe tiny" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_recipe_is_one_line_and_exit_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(COMMANDS[name], ["--recipe", "huge"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "choose one of" in message


def test_a_recipe_without_a_teacher_of_its_own_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(teacher.main, ["--recipe", "qwen"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "its teacher is downloaded" in message


def test_a_missing_teacher_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--teacher", str(tmp_path / "none"), "--workdir", str(tmp_path / "w"), "--out", str(tmp_path / "o")]
    assert run(distill.main, arguments) == 2
    assert "no teacher at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


WRONG = {
    "no base": (["--recipe", "flux", "--base", "nowhere"], "there is no base model at nowhere"),
    "no prompts": (["--prompts", "nowhere.txt"], "there are no prompts at nowhere.txt"),
    "no device": (["--device", "abacus"], "--device abacus cannot be used"),
    "another device": (["--device", "meta"], "use cpu, cuda or cuda:NUMBER"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_distill_cannot_work_with_is_one_line_and_exit_2(
    wrong: str, teacher_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = WRONG[wrong]
    teacher = [] if "--base" in arguments else ["--base", str(teacher_path)]
    assert run(distill.main, [*arguments, *teacher, "--workdir", str(tmp_path / "w")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and words in message and list(tmp_path.iterdir()) == []


def test_a_missing_data_set_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(teacher.main, ["--data", str(tmp_path), "--workdir", str(tmp_path / "w")]) == 2
    assert "make data" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def models(teacher_path: Path, pictures: Path, recipe: Recipe, tmp_path: Path) -> Path:
    """A models folder: the random teacher, both students distilled for a few iterations, a random classifier."""
    for kind, name in (("arcflow", "adapter"), ("linear", "linear")):
        base, student = choose_base(recipe, teacher_path, tmp_path), student_recipe(recipe, kind)
        distil(recipe, base, choose_prompts(recipe), student, tmp_path / kind, tmp_path / "models" / name)
    torch.manual_seed(0)
    save_file(Classifier(len(concepts())).state_dict(), tmp_path / "models" / "classifier.safetensors")
    return tmp_path / "models"


def test_evaluate_prints_every_figure_and_draws(
    teacher_path: Path, models: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--models", str(models), "--teacher", str(teacher_path), "--data", str(pictures), "--seeds", "6"]
    assert run(evaluate_command.main, [*arguments, "--out", str(tmp_path / "e"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert set(report["student"]) == set(report["linear"]) == {"1", "2", "4"}
    assert set(report["teacher"]) == {"1", "2", "4", "100"}
    for row in report["student"].values():
        assert set(row) == {"rel_l2", "frechet", "psnr_db", "accuracy", "diversity"}
        assert all(isinstance(v, float) for v in row.values())
    assert report["teacher"]["100"]["rel_l2"] == 0.0 and report["teacher"]["100"]["psnr_db"] is None
    assert set(report["path_error"]) == {"student", "linear"} and report["seeds"] == 6
    assert 0.0 < report["trainable_fraction"] < 1.0
    assert list(report["other_sizes"]) == ["96x64", "64x96", "80x80"]
    for row in report["other_sizes"].values():
        assert set(row) == {"student", "linear", "teacher"} and all(value > 0.0 for value in row.values())
    for name in ("grid.png", "trajectories.png"):
        assert (tmp_path / "e" / name).read_bytes().startswith(b"\x89PNG")


def test_the_teacher_gets_closer_to_its_endpoint_with_more_steps(
    teacher_path: Path, models: Path, pictures: Path, recipe: Recipe, tmp_path: Path
) -> None:
    longer = replace(recipe, evaluate=replace(recipe.evaluate, reference_steps=40, nfe=(1, 2, 8)))
    result = evaluate(
        longer, open_teacher(teacher_path), {"student": models / "adapter"},
        open_judge(longer, longer.evaluate.seeds, models / "classifier.safetensors", pictures), lambda *_: None,
    )  # fmt: skip
    errors = [result.report["teacher"][n]["rel_l2"] for n in ("1", "2", "8", "40")]
    assert errors[0] > errors[1] > errors[2] > errors[3] == 0.0
    assert "linear" not in result.report and "gain_over_linear" not in result.report
    assert path_error(result.reference, result.reference) == 0.0


def test_evaluate_refuses_one_seed_and_a_missing_classifier(
    teacher_path: Path, models: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(evaluate_command.main, ["--seeds", "1"]) == 2
    assert "at least 2" in capsys.readouterr().err
    (models / "classifier.safetensors").unlink()
    arguments = ["--models", str(models), "--teacher", str(teacher_path), "--data", str(pictures), "--seeds", "2"]
    assert run(evaluate_command.main, [*arguments, "--out", str(tmp_path / "e")]) == 2
    assert "no classifier at" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()
