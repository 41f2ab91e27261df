"""The parts ``plans``, ``provider`` and ``distil``, as far as they go without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu import images
from gpu.catalogue import Options
from gpu.parts import distil, plans, training
from gpu.records import Printer, SkipPartError
from tests.gpu.recorder import Recorder


def test_a_pipeline_is_compared_and_timed() -> None:
    from runtime import Pipeline

    emit = Recorder()
    pipeline, other = (Pipeline.open("tiny", target="cpu", threads=threads) for threads in (1, 1))
    images.compare(emit, "tiny", pipeline, other, 1e-6)
    images.measure(emit, "tiny", pipeline, 2)
    compared, timed = emit.records
    assert compared["held"] is True and compared["error"] == 0.0 and len(compared["cases"]) == 3
    assert timed["total"]["samples"] == 2 and {"evaluation 2", "solver 2", "vae"} <= set(timed["stages"])


def test_another_image_does_not_pass() -> None:
    from runtime import Pipeline

    class Off:
        """A pipeline of other seeds."""

        backend = "off by one"

        def __init__(self, pipeline: Pipeline) -> None:
            self._pipeline = pipeline

        def generate(self, prompt: str, seed: int, **options: int) -> object:
            return self._pipeline.generate(prompt, seed=seed + 1, **options)

    emit, pipeline = Recorder(), Pipeline.open("tiny", target="cpu", threads=1)
    images.compare(emit, "tiny", Off(pipeline), pipeline, 0.1)  # type: ignore[arg-type]
    assert emit.failed


def test_a_bundle_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    with pytest.raises(SkipPartError, match="cannot be built"):
        plans._build(tmp_path / "nothing", tmp_path / "out")


def test_plans_need_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "need_gpu", lambda: None)
    with pytest.raises(SkipPartError, match="--bundle"):
        plans.run(Printer("plans"), Options())


def test_flux_is_distilled_at_a_small_size(tmp_path: Path) -> None:
    options, emit = Options(rehearse=True, out=tmp_path), Recorder()
    for name, changes in (training.WAYS[0], training.WAYS[1]):
        training.measure(emit, options, name, changes, "cpu")
    for record in emit.records:
        assert record["iteration"]["samples"] == training.ITERATIONS - 1 and record["iteration"]["median_s"] > 0
        assert all(loss > 0 for loss in record["losses"]) and record["told"]["activations"] > 0
    assert emit.records[1]["told"]["frozen"] < emit.records[0]["told"]["frozen"] and not list(tmp_path.iterdir())


def test_iterations_are_timed_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil, "WARM_UP", 1)
    emit = Recorder()
    distil.measure(emit, "distillation", distil.tiny_recipe(), 2, 2, tmp_path)
    (record,) = emit.records
    assert record["iteration"]["samples"] == 2 and record["iteration"]["median_s"] > 0
    assert record["batch"] == 2 and not list(tmp_path.iterdir())
