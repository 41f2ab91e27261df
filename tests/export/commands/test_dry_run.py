"""``export.build --dry-run`` and ``--max-nfe``: what is said before anything starts, and what is rejected."""

from __future__ import annotations

from pathlib import Path

import pytest

from export import build as command
from foundation.cli import run
from tests.export.conftest import Sources, arguments


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
