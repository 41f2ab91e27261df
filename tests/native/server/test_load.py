"""``benchmarks/serve_load.py``: that it counts what it sends and sees. Its figures are for a quiet machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import serve_load
from benchmarks.serve_load import Answered, faults_of, spread, summary


def test_every_request_is_counted(native_tree: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, serve_load.__file__, "--seconds", "0.3", "--timeout", "5", "--json", str(figures)]
    environment = {**os.environ, "ARCFLOW_NATIVE_BUILD": str(native_tree)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert figures.exists(), done.stderr
    measured = json.loads(figures.read_text())
    faults = faults_of(measured)
    assert (done.returncode, done.stderr) == ((2, f"error: {'; '.join(faults)}\n") if faults else (0, ""))
    assert json.loads(done.stdout.splitlines()[-1]) == measured
    assert set(measured["kinds"]) == {"usual", "long"}
    for found in measured["kinds"].values():
        assert [load["share"] for load in found["loads"]] == [0.5, 1, 2]
        for row in (found["capacity"], *found["loads"]):
            assert sum(row["outcomes"].values()) == row["requests"]
            assert set(row["outcomes"]) <= {"200", "429 queue_full", "429 too_late", "504 deadline_exceeded"}
        assert found["capacity"]["requests"] >= found["callers"]


def answered(due: float, done: float, status: int = 200, code: str = "") -> Answered:
    return Answered(due, due + 0.001, done, status, code)


def test_goodput_is_what_comes_in_time_between_the_ramp_and_the_end() -> None:
    arguments = serve_load.Namespace(timeout=1.0, seconds=8.0)
    answers = [
        *(answered(10 + 0.5 * j, 10.4 + 0.5 * j) for j in range(16)),
        answered(12, 13.5),
        answered(13, 13.1, 429, "too_late"),
        answered(13, 14.1, 504, "deadline_exceeded"),
        answered(17.9, 18.2),
    ]
    found = summary(answers, 10.0, arguments)
    assert found["requests"] == 20
    assert found["outcomes"] == {"200": 18, "429 too_late": 1, "504 deadline_exceeded": 1}
    assert found["goodput"] == 2.0  # 14 within 7 s
    assert found["latency_ms"] == {"p50": 400.0, "p99": 1500.0, "most": 1500.0}
    assert found["lateness_ms"]["p99"] == pytest.approx(1)
    assert spread([]) == {}


def test_a_missed_aim_is_told() -> None:
    def row(goodput: float, p99: float, **outcomes: int) -> dict[str, object]:
        return {"goodput": goodput, "latency_ms": {"p99": p99}, "lateness_ms": {"p99": 3.0}, "outcomes": outcomes}

    def faults(last: dict[str, object]) -> list[str]:
        kinds = {"long": {"capacity": row(10, 100), "loads": [row(5, 50), last]}}
        return faults_of({"timeout_s": 2.0, "kinds": kinds})

    assert faults(row(9.1, 1990)) == []
    assert faults(row(8.9, 1990)) == ["long: 8.9 good answers a second at the most load, 10 at best"]
    assert faults(row(9.1, 2001)) == ["long: an accepted request at the most load takes 2001 ms (p99)"]
    assert faults(row(9.1, 1990, **{"0": 2})) == ["long: 2 requests were not answered"]
    assert "late (p99)" in faults({**row(9.1, 1990), "lateness_ms": {"p99": 201.0}})[0]
