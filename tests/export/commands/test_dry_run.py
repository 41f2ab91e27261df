"""``export.build --dry-run`` and ``--max-nfe``: what is said before anything starts, and what is rejected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export import build as command
from foundation.cli import run
from tests.export.conftest import Sources, arguments
from tests.export.tensorrt.graphs import rtx


def test_it_says_what_would_be_built_and_writes_nothing(
    sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, work = tmp_path / "out" / "tiny-fp32-cpu", tmp_path / "work"
    assert run(command.main, [*arguments(sources, out, work), "--dry-run"]) == 0
    said = capsys.readouterr()
    for name in ("clip", "t5", "conditioner", "backbone", "vae_decoder"):
        assert name in said.err
    assert "of memory" in said.err
    assert not said.out
    assert "GPU" not in said.err
    assert not list(tmp_path.iterdir())


def test_it_says_which_card_the_result_fits(
    sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rtx()
    options = ["--precision", "fp16", "--target", "sm89", "--dry-run", "--json"]
    asked = [*arguments(sources, tmp_path / "out", tmp_path / "work"), *options]
    assert run(command.main, asked) == 0
    said = capsys.readouterr()
    memory = json.loads(said.out)["memory"]
    assert (memory["basis"], memory["resident"]["card"], memory["low_vram"]["card"]) == ("estimate", 12, 12)
    assert "on a GPU, estimated: clip " in said.err
    assert "a card of 12 GB; with --low-vram" in said.err
    for shapes, same in ((["--resolutions", "64x64", "--batch", "1"], True), (["--batch", "1-4"], False)):
        assert run(command.main, [*asked, *shapes]) == 0
        assert (json.loads(capsys.readouterr().out)["memory"]["working"] == memory["working"]) is same
    assert not list(tmp_path.iterdir())


def test_it_says_so_where_the_machine_is_too_small(
    sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.folders.places.available_memory", lambda: 1 << 20)
    assert run(command.main, [*arguments(sources, tmp_path / "tiny-fp32-cpu", tmp_path / "work"), "--dry-run"]) == 2
    assert "of memory are needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("most", "message"),
    [
        ("0", "--max-nfe 0 is not possible; allowed: 1 to 64"),
        ("65", "--max-nfe 65 is not possible; allowed: 1 to 64"),
        ("1", "--max-nfe 1 is below the student's own 2 evaluations; give 2 or more"),
    ],
)
def test_evaluations_that_cannot_be(
    sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str], most: str, message: str
) -> None:
    options = [*arguments(sources, tmp_path / "out", tmp_path / "work"), "--max-nfe", most]
    assert run(command.main, options) == 2
    assert message in capsys.readouterr().err
