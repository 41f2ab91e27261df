"""``python -m engines.verify``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engines.locate import ENVIRONMENT
from engines.machine import this_machine
from engines.trust import sealed
from engines.verify import main
from foundation.cli import run
from tests.engines.damages import caching
from tests.runtime import small_bundle, small_plans
from tests.runtime.cuda import plan_bundle
from tests.runtime.cuda.trials.played import SPOIL, play


def test_a_line_a_file_and_ok(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, [str(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert lines[-1].startswith("OK tiny-fp32-cpu: 7 files, ")


def test_quiet(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["--quiet", str(bundle)]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_links_are_followed_where_they_are_allowed(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    caching(bundle)
    assert run(main, ["--quiet", str(bundle)]) == 2
    assert "or run it with --allow-links" in capsys.readouterr().err
    assert run(main, ["--quiet", "--allow-links", str(bundle)]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["--run", "--allow-links", str(bundle)])
    assert "--allow-links is not for --run" in capsys.readouterr().err


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


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of plans that the played TensorRT runs, with its ONNX. Not to be changed."""
    root = tmp_path_factory.mktemp("bundles")
    onnx = small_bundle.build(root / "tiny-fp32-cpu").root
    return plan_bundle.build(root / "tiny-fp32-sm89", onnx).root


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started find a GPU."""
    for name, value in play(tmp_path / "machine").items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("played")
def test_plans_are_run_in_a_process_of_runtime_s(plans: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(main, [str(plans), "--run"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-7] == "on tensorrt-rtx 1.7.1.116, stand-in (sm89):"
    assert lines[-5] == "clip: finite, of input_ids [1, 32]"
    assert lines[-1].startswith("OK tiny-fp32-sm89")


@pytest.mark.usefixtures("played")
def test_plans_that_give_nonsense_are_not_ok(
    plans: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SPOIL, "sequence=nan")
    assert run(main, [str(plans), "--run", "--quiet"]) == 2
    said = capfd.readouterr()
    assert "OK" not in said.out
    assert said.err.count("\n") == 1
    assert "error: the plan of t5 gives values that are not finite (768 of 768 of sequence)" in said.err


@pytest.mark.skipif(bool(this_machine().gpus), reason="there is a GPU here")
@pytest.mark.parametrize("against", [False, True])
def test_without_a_gpu_it_is_one_line(plans: Path, capfd: pytest.CaptureFixture[str], against: bool) -> None:
    onnx = ["--against", str(plans.parent / "tiny-fp32-cpu")] if against else []
    assert run(main, [str(plans), "--run", "--quiet", *onnx]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "there is no NVIDIA driver" in said.err or "CUDA finds no GPU" in said.err or "cannot be loaded" in said.err


def test_only_plans_are_run(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(main, [str(bundle), "--run"]) == 2
    assert "holds no plans" in capfd.readouterr().err


def test_against_is_for_run(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(bundle), "--against", str(bundle)])
    assert caught.value.code == 2
    assert "--against is for --run" in capsys.readouterr().err


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
