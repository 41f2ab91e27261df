"""``export.build --precision fp8`` alone: it measures its scales first, once for a student and all of its styles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.bundle import open_bundle
from export import build as command
from export.assembling import gate
from export.fp8.calibration import read_calibration
from export.quality import own
from export.sources.models import MODELS
from export.students.subject import open_subject
from foundation.cli import run
from tests.export.conftest import arguments
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
    monkeypatch.setattr(gate, "PROMPTS", 2)


@pytest.mark.usefixtures("few")
def test_it_measures_once_and_builds(
    flux: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(command.main, _arguments(flux, tmp_path, "--gate", "0.5")) == 0
    said = capsys.readouterr().err
    assert f"no --calibration is given: unless {tmp_path / 'work'} has the scales, they are measured: 4 prompts" in said
    (scales,) = (tmp_path / "work").glob("calibration-*.json")
    manifest = open_bundle(tmp_path / "flux-fp8-onnx").manifest
    assert manifest.quantisation is not None
    assert manifest.quantisation.calibration == read_calibration(scales, "").digest
    assert manifest.gate is not None

    def never(*_: object) -> None:
        raise AssertionError("the scales are there")

    monkeypatch.setattr(own, "measure", never)
    assert run(command.main, _arguments(flux, tmp_path, "--gate", "0.5")) == 0


def test_a_larger_run_where_there_is_time(flux: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = open_subject(MODELS["flux"], str(flux.base), str(flux.adapter))
    monkeypatch.setattr(own, "SECONDS", float("inf"))
    whole = own.choose_run(subject).run
    limits = subject.spec.limits
    assert (whole.width, whole.height) == (limits.width.opt, limits.height.opt)
    assert len(whole.prompts) > 16
    monkeypatch.setattr(own, "SECONDS", 0.0)
    found = own.choose_run(subject)
    least = found.run
    assert (least.width, least.height, len(least.prompts)) == (limits.width.opt // 4, limits.height.opt // 4, 4)
    assert (found.needed.seconds or 0.0) > 0.0


def test_only_what_takes_scales_asks(flux: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command.main, _arguments(flux, tmp_path, "--only", "t5")) == 0
    assert "--calibration" not in capsys.readouterr().err
    assert not list((tmp_path / "work").glob("calibration-*.json"))


@pytest.mark.usefixtures("few")
def test_scales_of_the_project_s_own_student_are_not_taken_for_another(
    sources: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``tiny`` has a calibration; a student of another base and adapter under that name has not."""
    given = arguments(sources, tmp_path / "tiny-fp8-cpu", tmp_path / "work")
    assert run(command.main, [*given, "--precision", "fp8", "--gate", "0.5"]) == 0
    assert "they are measured" in capsys.readouterr().err
    assert len(list((tmp_path / "work").glob("calibration-*.json"))) == 1


@pytest.mark.parametrize("pattern", ["t5.decoder.*", "vae_decoder", "backbone.no_such.*", "conditioner.norm_out.*"])
def test_a_pattern_that_keeps_nothing_high_is_rejected(
    flux: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str], pattern: str
) -> None:
    assert run(command.main, _arguments(flux, tmp_path, "--keep-high", pattern)) == 2
    assert "matches none of the" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
