"""README's table of cards is what its command prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.cards import main
from foundation.cli import run

ROOT = Path(__file__).parents[2]


def test_the_table_of_cards_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, []) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"^\| model \| text encoders .*(?:\n\|.*)*", readme, re.MULTILINE)
    assert shown is not None
    assert shown[0].splitlines() == printed
    assert len(printed) == 2 + 6
