"""The parts ``machine``, ``plans``, ``provider`` and ``distil``, as far as they go without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu import pictures
from gpu.catalogue import Options
from gpu.parts import distil, machine, plans
from gpu.records import Printer, SkipPartError
from tests.gpu.recorder import Recorder


def test_versions_name_what_is_installed() -> None:
    found = machine.versions()
    assert {"torch", "numpy", "cuda-bindings"} <= set(found) and "cupy-cuda13x" not in found


def test_a_pipeline_is_compared_and_timed() -> None:
    from runtime import Pipeline

    emit = Recorder()
    pipeline, other = (Pipeline.open("tiny", target="cpu", threads=threads) for threads in (1, 1))
    pictures.compare(emit, "tiny", pipeline, other, 1e-6)
    pictures.measure(emit, "tiny", pipeline, 2)
    compared, timed = emit.records
    assert compared["held"] is True and compared["error"] == 0.0 and len(compared["cases"]) == 3
    assert timed["rounds"] == 2 and {"backbone", "solver", "vae"} <= set(timed["stages_ms"])


def test_another_picture_does_not_pass() -> None:
    from runtime import Pipeline

    class Off:
        """A pipeline of other seeds."""

        backend = "off by one"

        def __init__(self, pipeline: Pipeline) -> None:
            self._pipeline = pipeline

        def generate(self, prompt: str, seed: int, **options: int) -> object:
            return self._pipeline.generate(prompt, seed=seed + 1, **options)

    emit, pipeline = Recorder(), Pipeline.open("tiny", target="cpu", threads=1)
    pictures.compare(emit, "tiny", Off(pipeline), pipeline, 0.1)  # type: ignore[arg-type]
    assert emit.failed


def test_a_bundle_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    with pytest.raises(SkipPartError, match="cannot be built"):
        plans._build(tmp_path / "nothing", tmp_path / "out")


def test_plans_need_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "need_gpu", lambda: None)
    with pytest.raises(SkipPartError, match="--bundle"):
        plans.run(Printer("plans"), Options())


def test_iterations_are_timed_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from arcflow.recipe import load_recipe
    from arcflow.tiny.teacher_folder import open_teacher

    monkeypatch.setattr(distil, "WARM_UP", 1)
    emit = Recorder()
    found = distil.throughput(load_recipe("tiny"), open_teacher(distil.TEACHER), 2, 2, tmp_path)
    distil.report(emit, found, 2)
    assert found.iterations == 2 and found.seconds > 0
    assert emit.records[0]["batch"] == 2 and not list(tmp_path.iterdir())
