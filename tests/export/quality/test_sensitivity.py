"""The sensitivity report: each layer alone, the order, the advice, and what the command writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from export import sensitivity
from export.fp8.calibration import nominal, write_calibration
from export.networks.base import INNER
from export.quality.layer_errors import LayerErrors, layer_errors, suggest
from export.quality.measure import linears
from export.sources.models import MODELS
from export.students.subject import Subject, open_subject
from foundation.cli import run
from tests.export.conftest import Sources

ERRORS = LayerErrors(
    layers=(("a.0.x", 0.04), ("a.1.x", 0.03), ("a.1.y", 0.0)), blocks=(("a.0", 0.04), ("a.1", 0.03)), together=0.05
)


@pytest.fixture(scope="module")
def subject(sources: Sources) -> Subject:
    return open_subject(MODELS["tiny"], str(sources.base), str(sources.adapter)).digested()


@pytest.mark.parametrize(("target", "kept"), [(0.06, ()), (0.05, ()), (0.035, ("a.0.x",)), (0.01, ("a.0.x", "a.1.x"))])
def test_advice_keeps_the_worst_layers_until_the_rest_fits(target: float, kept: tuple[str, ...]) -> None:
    assert suggest(ERRORS, target) == kept


def test_errors_are_scaled_to_what_was_measured_together() -> None:
    worse = LayerErrors(ERRORS.layers, ERRORS.blocks, together=0.10)
    assert suggest(worse, 0.061) == ("a.0.x",)  # the other layer alone: 0.03 * 2
    assert suggest(worse, 0.05) == ("a.0.x", "a.1.x")


@pytest.fixture(scope="module")
def calibration_file(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nominal scales; one layer's are far too small, so that its inputs saturate."""
    with torch.device("meta"):
        module = subject.whole.build(torch.float32)
    calibration = nominal(linears(getattr(module, INNER)), subject.student.digest)
    amax = {**calibration.amax, "single_transformer_blocks.0.proj_out": 1e-3}
    path = tmp_path_factory.mktemp("calibration") / "c.json"
    from msgspec.structs import replace

    write_calibration(replace(calibration, amax=amax), path)
    return path


def test_the_layer_whose_scale_is_wrong_comes_out_worst(subject: Subject, calibration_file: Path) -> None:
    from export.fp8.calibration import read_calibration

    prompted = subject.prompted(["a woman astronaut", "one red heart"], 32, 32, torch.float32, torch.device("cpu"))
    steps: list[tuple[int, int]] = []
    report = layer_errors(
        subject.whole, read_calibration(calibration_file), prompted, subject.sigmas(),
        lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert report.layers[0][0] == "single_transformer_blocks.0.proj_out"
    assert report.layers[0][1] > 3 * report.layers[1][1]
    assert report.blocks[0][0] == "single_transformer_blocks.0"
    assert [error for _, error in report.layers] == sorted((error for _, error in report.layers), reverse=True)
    assert len(report.layers) == 17
    assert steps[-1] == (20, 20)


def test_the_command_writes_tables_figures_and_a_plot(
    subject: Subject, calibration_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text("a woman astronaut\n")
    files = {"--json": tmp_path / "errors.json", "--plot": tmp_path / "errors.png"}
    options = ["--base", str(subject.base), "--adapter", str(subject.adapter), "--prompts", str(tmp_path / "p.txt")]
    options += ["--num", "1", "--size", "32x32", "--calibration", str(calibration_file), "--target", "0.02"]
    options += [part for option, path in files.items() for part in (option, str(path))]
    assert run(sensitivity.main, options) == 0
    printed = capsys.readouterr()
    assert "single_transformer_blocks.0" in printed.out
    assert "--keep-high 'single_transformer_blocks.0.proj_out'" in printed.err
    content = json.loads(files["--json"].read_text())
    assert set(content) == {"measure", "layers", "blocks", "together", "keep_high"}
    assert content["keep_high"]["layers"][0] == "single_transformer_blocks.0.proj_out"
    assert files["--plot"].read_bytes().startswith(b"\x89PNG")


def test_a_calibration_of_another_student_is_refused(
    calibration_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(sensitivity.main, ["--calibration", str(calibration_file)]) == 2
    assert "was measured on another base, adapter or LoRA" in capsys.readouterr().err
    assert run(sensitivity.main, ["--model", "flux", "--adapter", "./my adapter", "--lora", "x:2"]) == 2
    error = capsys.readouterr().err
    assert "give --calibration FILE" in error
    assert "export.calibrate --model flux --adapter './my adapter' --lora x:2 --out calibration.json" in error
