"""The benchmark command: what it measures, prints and draws, and what it rejects."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.bundle import open_bundle
from foundation.cli import run
from runtime.bench.__main__ import main
from runtime.bench.gpu import Gpu
from runtime.bench.measure import covered, gaps, measure, name_spans
from runtime.bench.timeline import draw
from runtime.cuda.interface import DeviceInfo
from runtime.errors import BackendError
from runtime.pipeline import Pipeline
from runtime.result import Generation
from runtime.timing import Span
from tests.runtime.conftest import COMMITTED
from tests.runtime.cuda.onnx_engine import Session

MODELS = Path(__file__).parents[3] / "models" / "tiny"


def bench(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, Any]:
    """The table and the JSON line."""
    whole = ["--model", str(COMMITTED), "--runs", "3", "--warm-up", "1", "--timeline", str(folder / "t.png")]
    assert main([*whole, *arguments]) == 0
    *table, line = capsys.readouterr().out.splitlines()
    return "\n".join(table), json.loads(line)


def test_stages_and_total(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, result = bench([], tmp_path, capsys)
    names = list(result["stages"])
    assert names == [
        "tokenize", "text", "noise", "evaluation 1", "solver 1", "evaluation 2", "solver 2", "vae", "host overhead",
    ]  # fmt: skip
    assert all(name in table for name in names)
    assert 0 < result["total"]["least_s"] <= result["total"]["median_s"] <= result["total"]["p99_s"]
    assert result["total"]["samples"] == 3 and result["open_s"] > 0
    assert result["command"].startswith("python -m runtime.bench --model") and "3 runs" in table
    assert result["peak_bytes"]["host"] > 1 << 26
    assert result["digest"] == Pipeline.open(COMMITTED).manifest.digest
    with Image.open(tmp_path / "t.png") as image:
        assert image.size[0] == 1200


def test_more_evaluations_and_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, result = bench(["--nfe", "3", "--num-images", "2", "--width", "128"], tmp_path, capsys)
    assert sum(name.startswith("evaluation") for name in result["stages"]) == 3
    assert (result["images"], result["width"], result["height"]) == (2, 128, 64)


def test_the_roofline_of_every_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, result = bench(["--roofline", "--threads", "1"], tmp_path, capsys)
    rows = {row["network"]: row for row in result["roofline"]}
    assert set(rows) == {"backbone", "clip", "t5", "conditioner", "vae_decoder", "clip + conditioner + t5"}
    assert 1e8 < rows["backbone"]["operations"] < 2e8
    assert rows["backbone"]["share"] == pytest.approx(rows["backbone"]["limit_s"] / rows["backbone"]["measured_s"])
    assert rows["clip"]["share"] is None
    before = [rows[name] for name in ("clip", "conditioner", "t5")]
    assert rows["clip + conditioner + t5"]["limit_s"] == pytest.approx(sum(row["limit_s"] for row in before))
    text = result["stages"]["text"]["median_s"]
    assert rows["clip + conditioner + t5"]["measured_s"] == pytest.approx(text)
    more = {
        row["network"]: row
        for row in bench(["--roofline", "--threads", "1", "--nfe", "4"], tmp_path, capsys)[1]["roofline"]
    }
    assert more["conditioner"]["operations"] > 1.5 * rows["conditioner"]["operations"], "levels of all evaluations"
    assert more["backbone"]["operations"] == rows["backbone"]["operations"]
    assert "GFLOP/s in a product" in table


def test_a_baseline_runs_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = ["--base", str(MODELS / "teacher"), "--adapter", str(MODELS / "adapter")]
    table, result = bench(["--baseline", "teacher", "--baseline-runs", "1", *sources], tmp_path, capsys)
    (teacher,) = result["baselines"]
    assert (teacher["what"], teacher["evaluations"], teacher["runs"]) == ("teacher", 50, 1)
    assert "x ours an image" in table
    assert teacher["total_s"] > 3 * result["total"]["median_s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "0"], "--runs must be at least 1"),
        (["--num-images", "17"], "--num-images is 17; one batch of tiny is at most 16"),
        (["--timeline", "t.jpg"], "a file that ends in .png"),
        (["--baseline", "teacher", "--base", "/nowhere", "--runs", "1"], "there is no folder /nowhere"),
        (["--baseline", "rival"], "invalid choice: 'rival'"),
        (["--width", "33", "--runs", "1"], "width is 33"),
        (["--device", "gpu"], "device is 'gpu'; it must be cpu, cuda, or cuda:N"),
        (["--prompts", "old"], "invalid choice: 'old'"),
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


class OnGpu:
    """A pipeline as one on a GPU shows itself: the stages are the device's, and overlap."""

    backend = "TensorRT-RTX 1.7.1, sm90"

    def __init__(self, inner: Pipeline) -> None:
        self.manifest = inner.manifest
        self.sizes = inner.sizes
        self.prompts: list[str] = []
        self.closed = False
        self._inner = inner

    def generate(self, prompt: str, **options: Any) -> Generation:
        self.prompts.append(prompt)
        made = self._inner.generate(prompt, **options)
        times = [("text", 0, 4), ("noise", 1, 2), ("backbone", 4, 14), ("solver", 14, 15), ("backbone", 17, 27)]
        spans = tuple(Span(stage, start / 1e6, end / 1e6) for stage, start, end in [*times, ("vae", 28, 30)])
        return dataclasses.replace(made, spans=spans)

    def memory(self) -> dict[str, int]:
        return {"weights": 4 << 30, "buffers": 1 << 30}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> OnGpu:
    """runtime.bench sees this pipeline, and a GPU of which it takes 6 GiB."""
    pipeline = OnGpu(Pipeline.open(COMMITTED, threads=1))
    watch = types.SimpleNamespace(rest=lambda: None, peak=lambda: 6 << 30)
    gpu = Gpu(DeviceInfo("NVIDIA H100 80GB HBM3", "sm90", "13.0", 80 << 30, 50 << 20, 132), 1.98e9, 3.3e12)
    monkeypatch.setattr("runtime.bench.gpu.MemoryWatch", lambda ordinal: contextlib.nullcontext(watch))
    monkeypatch.setattr("runtime.bench.gpu.find_gpu", lambda ordinal: gpu)
    monkeypatch.setattr(Pipeline, "open", lambda *_, **options: pipeline)
    return pipeline


def test_a_gpu_has_its_own_figures(on_gpu: OnGpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, result = bench(["--device", "cuda:1", "--roofline"], tmp_path, capsys)
    stages = {name: stage["median_s"] for name, stage in result["stages"].items()}
    assert stages["evaluation 1"] == pytest.approx(10e-6)
    assert stages["host overhead"] == pytest.approx(result["total"]["median_s"] - 27e-6)
    assert result["idle"]["median_s"] == pytest.approx(2e-6)
    assert result["peak_bytes"]["gpu"] == 6 << 30
    assert result["gpu"]["capability"] == "sm90"
    assert "on NVIDIA H100 80GB HBM3; TensorRT-RTX 1.7.1, sm90" in table
    assert re.search(r"^peak memory, gpu +6144 MiB$", table, re.MULTILINE)
    assert "weights 4096, buffers 1024" in table
    assert result["gpu_bytes"] == {"weights": 4 << 30, "buffers": 1 << 30}
    assert "H100 data sheet, SXM; TFLOP/s: float32 67," in table
    rows = {row["network"]: row for row in result["roofline"]}
    assert rows["backbone"]["measured_s"] == pytest.approx(10e-6)
    assert on_gpu.closed


def test_the_pipeline_of_a_gpu_over_memory_that_stands_for_one(
    on_gpu: OnGpu, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages, the report of memory and the order of the real pipeline on a GPU; its times mean nothing here."""
    session = Session(open_bundle(small, contents="when used"))
    monkeypatch.setattr(Pipeline, "open", lambda *_, **options: session.pipeline)
    _, result = bench(["--device", "cuda", "--warm-up", "3"], tmp_path, capsys)
    assert list(result["stages"]) == [
        "tokenize", "text", "noise", "evaluation 1", "solver 1", "evaluation 2", "solver 2", "vae", "host overhead",
    ]  # fmt: skip
    assert result["gpu_bytes"]["buffers"] > 0
    assert result["backend"] == "stand-in"
    with pytest.raises(BackendError, match="closed"):
        session.pipeline.generate("a rose")


def test_prompts_are_new_so_that_no_cache_helps(
    on_gpu: OnGpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(["--device", "cuda", "--prompt", "a rose"], tmp_path, capsys)
    assert on_gpu.prompts == ["a rose, 0000", "a rose, 0001", "a rose, 0002", "a rose, 0003"]
    on_gpu.prompts.clear()
    bench(["--device", "cuda", "--prompt", "a rose", "--prompts", "same"], tmp_path, capsys)
    assert on_gpu.prompts == ["a rose"] * 4


def test_a_baseline_runs_where_ours_ran_and_in_its_type(
    on_gpu: OnGpu, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def start(command: list[str], **options: Any) -> Any:
        commands.append(command)
        assert on_gpu.closed, "what ours holds of the GPU is given back first"
        answer = {"what": "student", "mode": command[command.index("--mode") + 1], "total_s": 1.0, "total_p99_s": 1.5,
                  "stages_s": {"text": 1.0}, "dtype": "float32", "peak_bytes": 3 << 30}  # fmt: skip
        return types.SimpleNamespace(returncode=0, stdout=json.dumps(answer), stderr="")

    monkeypatch.setattr("runtime.bench.baselines.subprocess.run", start)
    sources = ["--base", str(MODELS / "teacher"), "--adapter", str(MODELS / "adapter")]
    table, result = bench(["--device", "cuda:1", "--baseline", "torch", *sources], tmp_path, capsys)
    assert [found["mode"] for found in result["baselines"]] == ["eager", "compile"]
    for command in commands:
        asked = dict(zip(command[3::2], command[4::2], strict=True))
        assert (asked["--device"], asked["--dtype"], asked["--nfe"]) == ("cuda:1", "float32", "2")
    assert "float32, 3072 MiB" in table


def test_a_baseline_without_torch_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = types.SimpleNamespace(returncode=1, stdout="", stderr="ModuleNotFoundError: No module named 'torch'\n")
    monkeypatch.setattr("runtime.bench.baselines.subprocess.run", lambda command, **options: failed)
    with pytest.raises(BackendError, match=r"No module named 'torch'; it needs the extra train: pip install"):
        bench(["--baseline", "teacher", "--base", str(MODELS / "teacher")], tmp_path, capsys)


def test_time_at_once_counts_once_and_what_is_between_evaluations_is_idle() -> None:
    spans = [("text", 0.0, 4.0), ("noise", 1.0, 2.0), ("evaluation 1", 5.0, 7.0), ("solver 1", 7.5, 8.0)]
    assert covered(spans) == 6.5
    assert covered(spans, 1.5, 7.75) == 4.75
    assert gaps([*spans, ("evaluation 2", 9.0, 10.0)]) == [1.5]
    assert gaps([*spans, ("vae", 6.0, 9.0), ("evaluation 2", 9.0, 10.0)]) == [0.0]
    assert gaps(spans) == []


def test_host_overhead_is_what_no_stage_covers() -> None:
    pipeline = Pipeline.open(COMMITTED, threads=1)
    found = measure(lambda seed: pipeline.generate("a rose", seed=seed, nfe=1), runs=1, warm_up=0)
    covered = sum(stage.median_s for stage in found.stages.values())
    assert covered == pytest.approx(found.total.median_s)
    assert list(found.stages)[-1] == "host overhead" and found.stages["host overhead"].median_s > 0
    assert found.idle is None


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
