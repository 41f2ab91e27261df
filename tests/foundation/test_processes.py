"""One command runs another in a process of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from foundation.processes import hand_over


def test_a_command_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = hand_over("engines.verify", tmp_path / "nowhere", output=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no bundle at")


def test_its_output_is_ours_unless_it_is_wanted(capfd: pytest.CaptureFixture[str]) -> None:
    assert hand_over("engines.verify", "--help").returncode == 0
    assert "python -m engines.verify" in capfd.readouterr().out


def test_what_was_on_the_path_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_command.py").write_text("print('found')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert hand_over("a_command", output=subprocess.PIPE).stdout == "found\n"
