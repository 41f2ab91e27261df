"""``export.build --precision fp8`` alone: it measures its scales first, once for a student and all of its styles."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.bundle import open_bundle
from export import build as command
from export.fp8.calibration import read_calibration
from export.quality import own
from export.sources.models import MODELS
from export.students.subject import open_subject
from foundation.cli import run
from tests.export.pipelines import Sources, small_flux


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return small_flux(tmp_path_factory.mktemp("flux"))


def _arguments(flux: Sources, folder: Path, *more: str) -> list[str]:
    given = ["--model", "flux", "--base", str(flux.base), "--adapter", str(flux.adapter), "--precision", "fp8"]
    given += ["--target", "onnx", "--resolutions", "256x256", "--batch", "1", "--text-tokens", "512"]
    return [*given, "--out", str(folder / "flux-fp8-onnx"), "--workdir", str(folder / "work"), *more]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest run at once: what a slow machine takes."""
    monkeypatch.setattr(own, "SECONDS", 0.0)


@pytest.mark.usefixtures("few")
def test_it_measures_once_and_builds(
    flux: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(command.main, _arguments(flux, tmp_path)) == 0
    said = capsys.readouterr().err
    assert "the scales are measured first, as no --calibration is given: 4 prompts at" in said
    (scales,) = (tmp_path / "work").glob("calibration-*.json")
    manifest = open_bundle(tmp_path / "flux-fp8-onnx").manifest
    assert manifest.quantisation is not None
    assert manifest.quantisation.calibration == read_calibration(scales, "").digest
    assert manifest.gate is not None

    def never(*_: object) -> None:
        raise AssertionError("the scales are there")

    monkeypatch.setattr(own, "measure", never)
    assert run(command.main, _arguments(flux, tmp_path)) == 0


def test_a_larger_run_where_there_is_time(flux: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = open_subject(MODELS["flux"], str(flux.base), str(flux.adapter))
    monkeypatch.setattr(own, "SECONDS", float("inf"))
    whole, _, _ = own.choose_run(subject)
    limits = subject.spec.limits
    assert (whole.width, whole.height) == (limits.width.opt, limits.height.opt)
    assert len(whole.prompts) > 16
    monkeypatch.setattr(own, "SECONDS", 0.0)
    least, needed, _ = own.choose_run(subject)
    assert (least.width, least.height, len(least.prompts)) == (limits.width.opt // 4, limits.height.opt // 4, 4)
    assert (needed.seconds or 0.0) > 0.0


def test_only_what_takes_scales_asks(flux: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command.main, _arguments(flux, tmp_path, "--only", "t5")) == 0
    assert "measured first" not in capsys.readouterr().err
    assert not list((tmp_path / "work").glob("calibration-*.json"))
