"""The model repository for Triton, without Triton."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.bundle import open_bundle
from engines.locate import BUILT_IN
from foundation.cli import run
from integrations.triton.__main__ import main

TINY = str(BUILT_IN / "tiny-fp16-cpu")


def test_a_repository_names_its_bundle(tmp_path: Path) -> None:
    assert run(main, [TINY, "--out", str(tmp_path), "--threads", "2"]) == 0
    config = (tmp_path / "tiny" / "config.pbtxt").read_text()
    assert "max_batch_size: 16" in config
    assert "decoupled: true" in config
    assert f'parameters {{ key: "bundle" value: {{ string_value: "{TINY}" }} }}' in config
    assert "KIND_CPU count: 1" in config
    assert sorted(path.name for path in (tmp_path / "tiny").rglob("*")) == ["1", "config.pbtxt", "model.py"]


def test_a_copy_is_a_bundle(tmp_path: Path) -> None:
    assert run(main, [TINY, "--out", str(tmp_path), "--copy", "--name", "a.b"]) == 0
    copied = open_bundle(tmp_path / "a.b" / "1" / "bundle")
    assert copied.manifest == open_bundle(Path(TINY)).manifest
    assert '"bundle"' not in (tmp_path / "a.b" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "../x"], "--name is '../x'"),
        (["--gpus", "0,x"], "--gpus is '0,x'"),
        (["--gpus", "0", "--host", "native"], "does not choose among GPUs"),
        (["--instances", "0"], "--instances is 0; it must be at least 1"),
        (["--queue", "0"], "--queue is 0"),
    ],
)
def test_a_bad_option_leaves_nothing(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, [TINY, "--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, [TINY, "--out", str(tmp_path)]) == 0
    assert run(main, [TINY, "--out", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert run(main, [str(tmp_path / "tiny"), "--out", str(tmp_path / "x")]) == 2
