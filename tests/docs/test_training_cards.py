"""The table of GPUs in docs/distil.md is what its command prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.training_cards import MACHINES, MODELS, main
from foundation.cli import run

ROOT = Path(__file__).parents[2]


def test_the_table_of_training_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    """Those rows whose settings are found at once; the others are made by the same command."""
    assert run(main, ["--machine", "8x24", "--machine", "8x80"]) == 0
    *printed, line = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs" / "distil.md").read_text(encoding="utf-8")
    shown = re.search(r"^\| model, GPUs .*(?:\n\|.*)*", page, re.MULTILINE)
    assert shown is not None
    rows = shown[0].splitlines()
    assert [row for row in rows if row in printed] == printed
    assert len(rows) == 2 + len(MODELS) * len(MACHINES)
    record = json.loads(line)
    assert [row["spare"] > 0 for row in record["rows"]] == [True] * 4
