"""The torch baselines: what they print, for both families, and what is rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arcflow.baseline import main
from foundation.cli import run
from tests.export.pipelines import small_qwen

MODEL = Path(__file__).parents[2] / "models" / "tiny"
TINY = ["--base", str(MODEL / "teacher"), "--width", "64", "--height", "64", "--text-tokens", "12", "--warm-up", "1"]


def result(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_student_is_timed_stage_by_stage(capsys: pytest.CaptureFixture[str]) -> None:
    found = result([*TINY, "--adapter", str(MODEL / "adapter"), "--runs", "3"], capsys)
    assert list(found["stages_s"]) == [
        "text", "noise", "evaluation 1", "solver 1", "evaluation 2", "solver 2", "vae",
    ]  # fmt: skip
    assert found["evaluations"] == 2
    assert 0 < found["total_s"] <= found["total_p99_s"]
    assert found["runs"] == 3
    assert found["peak_bytes"] > 1 << 27


def test_the_teacher_is_its_own_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    found = result([*TINY, "--what", "teacher", "--steps", "3", "--runs", "2"], capsys)
    assert (found["what"], found["evaluations"], list(found["stages_s"])) == ("teacher", 3, ["pipeline"])


def test_qwen_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = small_qwen(tmp_path)
    size = ["--width", "64", "--height", "32", "--text-tokens", "32", "--runs", "1", "--warm-up", "1"]
    student = result(["--base", str(sources.base), "--adapter", str(sources.adapter), *size, "--nfe", "1"], capsys)
    assert student["evaluations"] == 1
    teacher = result(["--base", str(sources.base), "--what", "teacher", "--steps", "2", *size], capsys)
    assert teacher["evaluations"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TINY], "--what student needs --adapter"),
        ([*TINY, "--what", "teacher", "--runs", "0"], "--runs must be at least 1"),
        (["--base", "/nowhere", "--what", "teacher"], "/nowhere is no diffusers pipeline"),
        ([*TINY, "--what", "teacher", "--device", "cuda:77"], "--device cuda:77 cannot be used"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(run(main, arguments))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
