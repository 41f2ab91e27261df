"""``arcflow-cli`` is ``python -m runtime.generate`` in C++: the same files, texts and exit codes."""

from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.locate import BUILT_IN, ENVIRONMENT
from foundation.cli import run
from runtime.generate import main
from tests.engines.damages import cached

PROMPT = "a smiling face with sunglasses"

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(native_build: Path, onnxruntime_library: Path, tmp_path: Path) -> Cli:
    """Runs the command in ``cpp`` of the test's folder."""
    folder = tmp_path / "cpp"
    folder.mkdir()

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(native_build / "arcflow-cli"), *arguments]
        variables = {ENVIRONMENT: str(BUILT_IN), "ARCFLOW_ONNXRUNTIME": str(onnxruntime_library)}
        return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120)

    return call


@pytest.fixture(autouse=True)
def python_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of Python's command, ``python`` of the test's folder."""
    folder = tmp_path / "python"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv(ENVIRONMENT, str(BUILT_IN))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_seconds(text: str) -> str:
    return re.sub(r"[0-9.]+ s from start", "T s from start", text)


@pytest.mark.parametrize(
    "arguments",
    [
        [PROMPT],
        [PROMPT, "--seed", "7", "--num-images", "3", "--scale", "8"],
        ["a red apple", "--out", "deep/./er//apple.PNG", "--previews", "4", "--num-images", "2", "--nfe", "4"],
        ["a star", "--width", "128", "--height", "32", "--seed", str(2**64 - 1), "--precision", "fp16"],
        ["\u201cCAF\u00c9\u201d \u212aIT \u0130x \U0001f45f -- " + "long " * 20, "--seed", "+007"],
        ["\u4e2d\u6587", "--target", "cpu"],
    ],
)
def test_the_same_files_and_words(
    cli: Cli,
    python_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    same_zlib: bool,
    arguments: list[str],
) -> None:
    arguments = [*arguments, "--threads", "1"]
    done = cli(*arguments)
    assert done.returncode == run(main, arguments) == 0, done.stderr
    captured = capsys.readouterr()
    assert without_seconds(done.stdout) == without_seconds(captured.out)
    assert done.stderr == captured.err
    cpp, python = contents(tmp_path / "cpp"), contents(python_folder)
    assert list(cpp) != []
    assert sorted(cpp) == sorted(python)
    for name, data in python.items():
        with Image.open(io.BytesIO(cpp[name])) as one, Image.open(io.BytesIO(data)) as other:
            assert np.array_equal(np.asarray(one), np.asarray(other))
            assert one.info == other.info
        assert cpp[name] == data or not same_zlib


def test_json_is_pythons(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [PROMPT * 4, "--json", "--out", "a.png", "--num-images", "2", "--previews", "1", "--threads", "1"]
    done = cli(*arguments)
    assert run(main, arguments) == 0
    captured = capsys.readouterr()
    assert done.stderr == captured.err != ""
    ours, theirs = json.loads(done.stdout), json.loads(captured.out)
    assert list(ours) == list(theirs)
    times, stages = ours.pop("timings"), theirs.pop("timings")
    assert ours == theirs
    assert set(times) == set(stages) - {"import"}
    assert 0 < times["total"] < 60


@pytest.mark.parametrize(
    "arguments",
    [
        [""],
        [" \u2003"],
        [PROMPT, "--width", "100000"],
        [PROMPT, "--height", "33"],
        [PROMPT, "--width", "-8"],
        [PROMPT, "--width", "17", "--height", "99999"],
        [PROMPT, "--nfe", "0"],
        [PROMPT, "--nfe", "65"],
        [PROMPT, "--seed", "-1"],
        [PROMPT, "--seed", str(2**64)],
        [PROMPT, "--seed", "-" + "9" * 40],
        [PROMPT, "--num-images", "0"],
        [PROMPT, "--num-images", str(10**9)],
        [PROMPT, "--previews", "-1"],
        [PROMPT, "--previews", "65"],
        [PROMPT, "--scale", "0"],
        [PROMPT, "--scale", "65"],
        [PROMPT, "--threads", "0"],
        [PROMPT, "--model", "huge"],
        [PROMPT, "--model", "./nowhere"],
        [PROMPT, "--precision", "fp4"],
        [PROMPT, "--target", "sm89"],
        [PROMPT, "--out", "picture.jpg"],
        [PROMPT, "--out", ".png"],
        [PROMPT, "--out", "."],
        [PROMPT, "--out", "a" * 300 + ".png"],
        [PROMPT, "--out", "/proc/none/a.png"],
        [PROMPT, "--out", "/dev/null/a.png"],
    ],
)
def test_bad_input_is_pythons_line(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    done = cli(*arguments)
    assert done.returncode == run(main, arguments) == 2
    assert done.stdout == ""
    assert done.stderr == capsys.readouterr().err
    assert list((tmp_path / "cpp").iterdir()) == []


@pytest.mark.parametrize("options", [(), ("--allow-links",)])
def test_a_bundle_in_a_cache(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    folder = cached(BUILT_IN / "tiny-fp16-cpu", tmp_path / "hub")
    arguments = [PROMPT, "--model", str(folder), "--out", "a.png", "--threads", "1", *options]
    done = cli(*arguments)
    assert done.returncode == run(main, arguments) == (0 if options else 2)
    assert done.stderr == capsys.readouterr().err
    assert sorted(contents(tmp_path / "cpp")) == sorted(contents(tmp_path / "python")) == ["a.png"] * len(options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "prompt"),
        ([PROMPT, "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        ([PROMPT, "--nfe", "1.5"], "argument --nfe: invalid int value: '1.5'"),
        ([PROMPT, "--nope"], "--nope"),
        ([PROMPT, "another"], "another"),
    ],
)
def test_bad_options_are_one_line(cli: Cli, arguments: list[str], message: str) -> None:
    done = cli(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("arcflow-cli: error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_missing_library(cli: Cli) -> None:
    done = cli(PROMPT, "--library", "/nowhere/libonnxruntime.so")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "/nowhere/libonnxruntime.so" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_shows_examples(cli: Cli) -> None:
    done = cli("--help")
    assert done.returncode == 0
    assert 'arcflow-cli "a smiling face with sunglasses"' in done.stdout


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_output_that_nobody_can_take(
    native_build: Path, onnxruntime_library: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    command = [native_build / "arcflow-cli", PROMPT, "--out", tmp_path / "face.png", *options]
    variables = {ENVIRONMENT: str(BUILT_IN), "ARCFLOW_ONNXRUNTIME": str(onnxruntime_library)}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, env=variables, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write to standard output: No space left on device\n"
