"""The recipe that README and ``--help`` print: calibrate the student once, then build it in FP8 with any style LoRA."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from torch import Tensor

from engines.bundle import open_bundle
from export.build import main as build
from export.calibrate import main as calibrate
from export.errors import CalibrationError
from export.folders import digests
from export.fp8.calibration import Calibration, check_student, nominal, read_calibration, write_calibration
from export.weights.files import open_folder
from export.weights.parents import UNREAD, Parents
from foundation.cli import run
from tests.export.conftest import Sources, arguments

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def lora(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A style of a tenth of the weights' norm on the attention of the first block."""
    weights, pairs = open_folder(sources.base / "transformer"), dict[str, Tensor]()
    generator = torch.Generator().manual_seed(0)
    for module in ("to_q", "to_k", "to_v", "to_out.0"):
        weight = weights.read(f"transformer_blocks.0.attn.{module}.weight")
        a, b = (torch.randn(*shape, generator=generator) for shape in ((4, weight.shape[1]), (weight.shape[0], 4)))
        stem = f"transformer.transformer_blocks.0.attn.{module}"
        pairs |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": 0.1 * b * weight.norm() / (b @ a).norm()}
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(pairs, path)
    return path


@pytest.fixture(scope="module")
def calibration(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measured on the student without a LoRA, as the recipe does it."""
    root = tmp_path_factory.mktemp("calibration")
    places = ["--base", str(sources.base), "--adapter", str(sources.adapter), "--workdir", str(root / "work")]
    assert calibrate([*places, "--num", "16", "--out", str(root / "tiny.json")]) == 0
    return root / "tiny.json"


def options(sources: Sources, tmp_path: Path, calibration: Path, *more: str) -> list[str]:
    places = arguments(sources, tmp_path / "tiny-fp8-cpu", tmp_path / "work")
    return [*places, "--precision", "fp8", "--calibration", str(calibration), *more]


def test_scales_of_the_student_serve_it_with_a_style(
    sources: Sources, lora: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(options(sources, tmp_path, calibration, "--lora", f"{lora}:0.8", "--gate", "0.2")) == 0
    assert "scales: those of the student without its style LoRAs" in capsys.readouterr().err
    manifest = open_bundle(tmp_path / "tiny-fp8-cpu").manifest
    assert manifest.quantisation is not None
    assert manifest.quantisation.options["scales"] == "without LoRA"
    assert "lora1" in manifest.parents
    assert manifest.gate is not None
    assert {result.measure for result in manifest.gate.results} == {"latent", "image"}


def test_a_gate_that_is_missed_with_them_says_how_to_measure_better_ones(
    sources: Sources, lora: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(sources, tmp_path, calibration, "--lora", f"{lora}:0.8", "--gate", "0.0001")
    assert run(build, given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    places = f"--model tiny --base {sources.base} --adapter {sources.adapter} --lora {lora}:0.8"
    assert f"measure the scales with the LoRA: python -m export.calibrate {places} --out calibration.json" in error
    assert "layers kept high that it hurts most" in error


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders that were digested."""
    names: list[str] = []
    original = digests.digest_tree

    def digest_tree(folder: Path, *rest: object) -> str:
        names.append(folder.name)
        return original(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(digests, "digest_tree", digest_tree)
    return names


def _edited(path: Path, out: Path, change: Callable[[Calibration], Calibration]) -> Path:
    write_calibration(change(read_calibration(path)), out)
    return out


def _of_a_lora(calibration: Calibration) -> Calibration:
    assert calibration.parents is not None
    parents = replace(calibration.parents, loras=(("5" * 64, 1.0),))
    return replace(calibration, parents=parents, student=parents.digest)


def _without_a_layer(calibration: Calibration) -> Calibration:
    left = {name: bound for name, bound in calibration.amax.items() if not name.endswith("attn.to_q")}
    return replace(calibration, amax=left)


HEADERS: dict[str, tuple[Callable[[Calibration], Calibration], str]] = {
    "another LoRA": (_of_a_lora, "was measured on another LoRA; it must be of the same base and adapter"),
    "a layer less": (_without_a_layer, "the calibration lacks"),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_what_headers_tell_is_refused_before_anything_large_is_read(
    sources: Sources, lora: Path, calibration: Path, tmp_path: Path, fault: str, read: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    change, message = HEADERS[fault]
    path = _edited(calibration, tmp_path / "c.json", change)
    assert run(build, options(sources, tmp_path, path, "--lora", f"{lora}:0.8")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert f"--base {sources.base} --adapter {sources.adapter} --lora {lora}:0.8 --out" in error
    assert not read
    assert len(error.splitlines()) == 1


def test_another_adapter_is_refused_before_the_base_is_read(
    sources: Sources, calibration: Path, tmp_path: Path, read: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(sources.adapter, adapter)
    tensors = load_file(adapter / WEIGHTS)
    save_file({**tensors, "proj_out_means.bias": tensors["proj_out_means.bias"] + 1.0}, adapter / WEIGHTS)
    assert run(build, options(Sources(sources.base, adapter), tmp_path, calibration)) == 2
    assert "was measured on another adapter; it must be" in capsys.readouterr().err
    assert read == ["adapter"]


def test_whose_scales_a_student_may_take() -> None:
    styles = (("1" * 64, 0.8),)
    student = Parents("b", "a", styles)
    layers = nominal(["x"], student.plain.digest)
    for own in (student, student.plain):
        check_student(replace(layers, student=own.digest, parents=own), student, Path("c"))
        check_student(replace(layers, student=own.digest, parents=None), student, Path("c"))
        check_student(replace(layers, student=own.digest, parents=own), Parents(UNREAD, UNREAD, styles), Path("c"))
    others = {
        "base": Parents("c", "a", styles), "adapter": Parents("b", "c"), "LoRA": Parents("b", "a", (("1" * 64, 0.7),)),
        "base and adapter": Parents("c", "c"),
    }  # fmt: skip
    for what, own in others.items():
        with pytest.raises(CalibrationError, match=f"measured on another {what}; it must be"):
            check_student(replace(layers, student=own.digest, parents=own), student, Path("c"))
        with pytest.raises(CalibrationError, match="measured on another base, adapter or LoRA"):
            check_student(replace(layers, student=own.digest, parents=None), student, Path("c"))
