"""How measurements are told: times, the machine, records, tables; and the records that are committed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from foundation.measuring import as_line, begin, keep, machine, percentile, shown, table, timing
from foundation.nvml import gpus

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(("share", "expected"), [(0.99, 99.0), (1.0, 100.0), (0.5, 50.0), (0.001, 1.0), (0.501, 51.0)])
def test_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_one_value_is_every_percentile() -> None:
    assert percentile([3.0], 0.99) == percentile([3.0], 0.01) == 3.0


def test_times_are_of_one_call() -> None:
    found = timing([3.0, 1.0, 2.0, 8.0], calls=2)
    assert (found.median_s, found.least_s, found.p99_s, found.samples) == (1.25, 0.5, 4.0, 4)


def test_a_record_begins_with_command_date_and_machine() -> None:
    found = begin("python benchmarks/x.py", ["--prompt", "a dog"])
    assert list(found) == ["command", "date", "machine"]
    assert found["command"] == "python benchmarks/x.py --prompt 'a dog'"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert begin("python x.py", [])["command"] == "python x.py"


def test_the_machine_is_this_one() -> None:
    found = machine()
    assert found["cores"] >= 1 and found["cpu"] and found["python"].startswith("3.")
    assert {"torch", "numpy", "cuda-bindings"} <= set(found["versions"]) and "cupy-cuda13x" not in found["versions"]
    assert found["memory_bytes"] is None or found["memory_bytes"] > 1 << 30
    card = {"name": "NVIDIA H100 NVL", "driver": "580.1", "memory_bytes": 1 << 36}
    known = {"cpu": "a CPU", "cores": 2, "memory_bytes": 24 << 30, "gpus": [card]}
    assert shown(known) == "a CPU, 2 cores, 24 GiB; NVIDIA H100 NVL (driver 580.1)"


def test_where_there_is_no_driver_there_are_no_gpus() -> None:
    assert gpus("libno-such-nvml.so") == []


def test_a_record_is_json_whatever_is_in_it(tmp_path: Path) -> None:
    given = {"a": float("inf"), "b": (1, True, None), "c": Path("x"), "d": {1: float("nan")}}
    wanted = {"a": "inf", "b": [1, True, None], "c": "x", "d": {"1": "nan"}}
    assert json.loads(as_line(given)) == wanted and "\n" not in as_line(given)
    keep(tmp_path / "new" / "record.json", given)
    assert json.loads((tmp_path / "new" / "record.json").read_text()) == wanted


def test_columns_are_as_wide_as_their_cells() -> None:
    rows = [("", "median"), ("a stage", "1 ms", "note"), ("b", "12.5 ms"), ("a line that is longer than any column",)]
    assert table(rows, right={1}).splitlines() == [
        "          median",
        "a stage     1 ms  note",
        "b        12.5 ms",
        "a line that is longer than any column",
    ]
    assert table([("alone",)]) == "alone" and table([]) == ""


def _records() -> list[Any]:
    found = [(path.name, json.loads(path.read_text())) for path in sorted(BENCHMARKS.glob("*.json"))]
    parts = {f"{name}, {part}": one for name, whole in found for part, one in whole.get("parts", {}).items()}
    # How good a model is does not depend on the machine.
    whole = {name: one for name, one in found if "parts" not in one and not name.startswith("evaluation")}
    return [pytest.param(one, id=name) for name, one in {**whole, **parts}.items()]


@pytest.mark.parametrize("record", _records())
def test_what_is_committed_is_a_record(record: dict[str, Any]) -> None:
    assert list(record)[:3] == ["command", "date", "machine"]
    assert record["machine"]["cores"] > 0 and record["machine"]["platform"]
