"""Most parts need nothing that torch's usual environment lacks, and some not even torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu.catalogue import PARTS
from gpu.records import parse


def _bare(*arguments: str) -> tuple[list[dict[str, Any]], str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.bare", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [record for line in done.stdout.splitlines() if (record := parse(line))], done.stdout


def test_nothing_absent_is_imported(tmp_path: Path) -> None:
    records, _ = _bare()
    assert not [
        record for record in records if record["kind"] == "failed" or (record.get("check") and not record["held"])
    ]
    measured = {record["what"] for record in records if record["kind"] == "measured"}
    assert {"solver: golden vectors", "FLUX, eager", "FLUX, fp8", "graph: result, 32 tokens"} <= measured
    skipped = {record["what"]: record["show"] for record in records if record["kind"] == "skipped"}
    assert "needs diffusers, peft, msgspec" in skipped["FLUX, diffusers"]
    assert "needs transformers and diffusers" in skipped["FLUX, image"]


def test_without_torch_its_parts_say_so_and_the_rest_goes_on() -> None:
    records, said = _bare("torch")
    assert not [record for record in records if record["kind"] == "failed"]
    assert "graph: result, 32 tokens" in {record["what"] for record in records if record["kind"] == "measured"}
    assert {"torch", "ceilings"} <= {record["what"] for record in records if record["kind"] == "skipped"}
    assert "torch skipped: needs torch, not installed here" in said
    assert all("torch" in PARTS[name].needs for name in ("flux", "solver", "training", "distil"))
    assert not any("torch" in PARTS[name].needs for name in ("scenarios", "machine", "graphs", "sanitizer", "provider"))
