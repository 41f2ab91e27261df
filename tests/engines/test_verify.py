"""``python -m engines.verify``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engines.locate import ENVIRONMENT
from engines.trust import sealed
from engines.verify import main
from foundation.cli import run
from tests.runtime import small_plans


def test_a_line_a_file_and_ok(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, [str(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert lines[-1].startswith("OK tiny-fp32-cpu: 7 files, ")


def test_quiet(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["--quiet", str(bundle)]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_by_name(bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(bundle.parent))
    assert run(main, ["tiny"]) == 0
    assert "OK tiny-fp32-cpu" in capsys.readouterr().out


def test_by_its_whole_name(bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(bundle.parent))
    assert run(main, ["tiny-fp32-cpu"]) == 0
    assert "OK tiny-fp32-cpu" in capsys.readouterr().out


def test_plans_that_were_built_here_are_ok_with_notes(
    tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_plans.build(tmp_path / "tiny-fp16-sm89", finish=sealed).root
    assert run(main, [str(folder)]) == 0
    out = capsys.readouterr().out
    assert "note: there is no tiny-fp16-onnx beside it" in out
    assert "OK tiny-fp16-sm89" in out


def test_foreign_plans_are_refused(tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_plans.build(tmp_path / "tiny-fp16-sm89").root
    assert run(main, [str(folder)]) == 2
    error = capsys.readouterr().err
    assert "its plans have no seal" in error
    assert "python -m export.build --model tiny --precision fp16 --target sm89" in error


@pytest.mark.parametrize("argument", ["./nowhere", "nowhere", "x" * 5000])
def test_nothing_there(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, [argument]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_as_a_command_a_damaged_bundle_is_exit_code_2_and_one_line(bundle: Path) -> None:
    (bundle / "clip.onnx").write_bytes(b"")
    command = [sys.executable, "-m", "engines.verify", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "clip.onnx" in done.stderr


def test_engines_needs_no_heavy_package() -> None:
    code = (
        "import sys, engines.verify, engines.writer; print([m for m in ('numpy', 'torch', 'onnx') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
