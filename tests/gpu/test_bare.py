"""Four parts need nothing that torch's usual environment lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gpu.records import parse


def test_nothing_absent_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.bare"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    records = [record for line in done.stdout.splitlines() if (record := parse(line))]
    assert not [
        record for record in records if record["kind"] == "failed" or (record.get("check") and not record["held"])
    ]
    assert {"solver: golden vectors", "FLUX, eager", "graph: result, 32 tokens"} <= {r["what"] for r in records}
    assert "diffusers skipped: needs diffusers, peft, msgspec" in done.stdout
