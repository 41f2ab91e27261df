"""The benchmark command: what it measures, prints and draws, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foundation.cli import run
from runtime.bench import main
from runtime.measure import measure, name_spans
from runtime.pipeline import Pipeline
from runtime.timeline import draw
from runtime.timing import Span
from tests.runtime.conftest import COMMITTED

MODELS = Path(__file__).parents[2] / "models" / "tiny"


def bench(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, Any]:
    """The table and the JSON line."""
    whole = ["--model", str(COMMITTED), "--runs", "3", "--warm-up", "1", "--timeline", str(folder / "t.png")]
    assert main([*whole, *arguments]) == 0
    *table, line = capsys.readouterr().out.splitlines()
    return "\n".join(table), json.loads(line)


def test_stages_and_total(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, result = bench([], tmp_path, capsys)
    names = [stage["name"] for stage in result["stages_s"]]
    assert names == [
        "tokenize", "text", "noise", "evaluation 1", "solver 1", "evaluation 2", "solver 2", "vae", "host overhead",
    ]  # fmt: skip
    assert all(name in table for name in names)
    assert 0 < result["total_s"]["median"] <= result["total_s"]["p99"]
    assert result["runs"] == 3
    assert result["peak_bytes"]["host"] > 1 << 26
    assert result["digest"] == Pipeline.open(COMMITTED).manifest.digest
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.size[0] == 1200


def test_more_evaluations_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, result = bench(["--nfe", "3", "--num-images", "2", "--width", "64"], tmp_path, capsys)
    assert sum(stage["name"].startswith("evaluation") for stage in result["stages_s"]) == 3
    assert (result["images"], result["width"], result["height"]) == (2, 64, 32)


def test_the_roofline_of_every_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, result = bench(["--roofline", "--threads", "1"], tmp_path, capsys)
    rows = {row["network"]: row for row in result["roofline"]}
    assert set(rows) == {"backbone", "clip", "t5", "vae_decoder", "clip + t5"}
    assert 1e8 < rows["backbone"]["operations"] < 2e8
    assert rows["backbone"]["share"] == pytest.approx(rows["backbone"]["limit_s"] / rows["backbone"]["measured_s"])
    assert rows["clip"]["share"] is None
    assert rows["clip + t5"]["limit_s"] == pytest.approx(rows["clip"]["limit_s"] + rows["t5"]["limit_s"])
    text = {stage["name"]: stage["median"] for stage in result["stages_s"]}["text"]
    assert rows["clip + t5"]["share"] == pytest.approx(rows["clip + t5"]["limit_s"] / text)
    assert "GFLOP/s in a product" in table


def test_a_baseline_runs_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = ["--base", str(MODELS / "teacher"), "--adapter", str(MODELS / "adapter")]
    table, result = bench(["--baseline", "teacher", "--baseline-runs", "1", *sources], tmp_path, capsys)
    (teacher,) = result["baselines"]
    assert (teacher["what"], teacher["evaluations"], teacher["runs"]) == ("teacher", 50, 1)
    assert "x ours a picture" in table
    assert teacher["total_s"] > 3 * result["total_s"]["median"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "0"], "--runs must be at least 1"),
        (["--num-images", "17"], "--num-images is 17; one batch of tiny is at most 16"),
        (["--timeline", "t.jpg"], "a file that ends in .png"),
        (["--baseline", "teacher", "--base", "/nowhere", "--runs", "1"], "there is no folder /nowhere"),
        (["--baseline", "rival"], "invalid choice: 'rival'"),
        (["--width", "33", "--runs", "1"], "width is 33"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(run(main, arguments))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_host_overhead_is_what_no_stage_covers() -> None:
    pipeline = Pipeline.open(COMMITTED, threads=1)
    found = measure(lambda seed: pipeline.generate("a bag", seed=seed, nfe=1), runs=1, warm_up=0)
    covered = sum(stage.median for stage in found.stages)
    assert covered == pytest.approx(found.total.median)
    assert found.stages[-1].name == "host overhead"
    assert found.stages[-1].median > 0


def test_spans_are_numbered_in_order() -> None:
    spans = [Span(stage, float(i), i + 0.5) for i, stage in enumerate(["text", "backbone", "solver", "backbone"])]
    assert [name for name, *_ in name_spans(spans)] == ["text", "evaluation 1", "solver 1", "evaluation 2"]


def test_a_bar_is_as_long_as_its_time_and_a_very_long_one_is_cut() -> None:
    rows = {"ours": [("vae", 0.0, 0.010)], "half": [("vae", 0.0, 0.005)], "slow": [("vae", 0.0, 1.0)]}
    pixels = np.asarray(draw("title", rows))
    colour = np.array([0xB2, 0x79, 0xA2])
    widths = [(pixels[_TOP_OF_BARS + row * 60] == colour).all(axis=1).sum() for row in range(3)]
    assert abs(widths[0] - 2 * widths[1]) <= 2
    assert abs(widths[2] - widths[0]) <= 2


_TOP_OF_BARS = 46 + 8 + 2
