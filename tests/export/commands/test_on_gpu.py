"""Plans on the GPU that they are for: the target that is left out, and parity there, on a machine that is played."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.bundle import open_bundle
from engines.machine import Machine
from engines.schema import ParityResult
from engines.verify import main as verify
from export import build as command
from export import engine
from export.assembling import device_parity
from export.parity import main as parity
from export.tensorrt import flavours
from foundation.cli import run
from tests.export.conftest import Sources, arguments
from tests.export.pipelines import small_flux
from tests.export.played import play_machine
from tests.runtime import small_bundle
from tests.runtime.cuda.trials.played import GPU, SPOIL

NETWORKS = ["clip", "t5", "conditioner", "backbone", "vae_decoder"]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return small_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder, so that networks are exported once."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine with an sm89: the networks whose plans are built on it."""
    return play_machine(tmp_path / "machine", monkeypatch)


def _flux(flux: Sources, folder: Path, *more: str) -> list[str]:
    given = ["--model", "flux", "--base", str(flux.base), "--adapter", str(flux.adapter), "--batch", "1"]
    return [*given, "--resolutions", "256x256", "--out", str(folder / "bundle"), "--workdir", str(folder), *more]


def _tiny(sources: Sources, out: Path, work: Path) -> list[str]:
    return [*arguments(sources, out, work), "--target", "sm89", "--precision", "bf16"]


def _on_gpu(bundle: Path) -> list[ParityResult]:
    return [result for result in open_bundle(bundle).manifest.parity if result.device]


def test_a_target_left_out_is_the_gpu_that_is_there(
    flux: Sources, tmp_path: Path, built: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command.main, [*_flux(flux, tmp_path), "--only", "clip"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == f"target sm89: the GPU of this machine, {GPU}"
    assert said.out.endswith("clip.plan\n") and built == ["clip"]


def test_plans_are_held_to_torch(
    sources: Sources, tmp_path: Path, work: Path, built: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    assert run(command.main, [*_tiny(sources, bundle, work), "--json"]) == 0
    said = capsys.readouterr()
    assert GPU in said.err and "was not measured" not in said.err
    found = _on_gpu(bundle)
    assert [result.network for result in found] == NETWORKS == built
    assert {(result.device, result.twin) for result in found} == {(GPU, False)}
    assert all(1e-4 < result.relative_error <= result.limit == 5e-2 for result in found), "bfloat16's own errors"
    assert found[3].shape == {"rows": 8, "batch": 1, "image_tokens": 64, "text_tokens": 12}
    assert len(open_bundle(bundle).manifest.parity) == 5 * 3 + 5
    assert len(json.loads(said.out.splitlines()[-1])["parity_on_gpu"]) == 5
    assert run(verify, [str(bundle), "--run"]) == 0


def test_of_large_networks_the_twin_s_plan_is_held_to_torch(
    sources: Sources, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = play_machine(tmp_path / "machine", monkeypatch, really=("t5",))
    monkeypatch.setattr(device_parity, "is_small", lambda network: network.name not in ("t5", "backbone"))
    bundle = tmp_path / "bundle"
    assert run(command.main, [*_tiny(sources, bundle, work), "--target", "rtx"]) == 0
    assert built == [*NETWORKS, "t5", "backbone"], "each, and of two the twin's"
    found = {result.network: result for result in _on_gpu(bundle)}
    assert {name for name, result in found.items() if result.twin} == {"t5", "backbone"}
    assert all(0 < result.relative_error <= result.limit for result in found.values())
    assert found["backbone"].shape == {"batch": 2, "image_tokens": 12, "rows": 2, "text_tokens": 5}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("pooled=1.5", "the plan of clip differs by 5.1e-01 (relative L2) at batch=1, the limit is 5e-02"),
        ("sequence=nan", "the plan of t5 gives values that are not finite (768 of 768 of sequence)"),
    ],
)
def test_plans_that_miss_it_end_the_build_and_nothing_is_written(
    sources: Sources, tmp_path: Path, work: Path, built: list[str], monkeypatch: pytest.MonkeyPatch, fault: str,
    message: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(SPOIL, fault)
    assert run(command.main, _tiny(sources, tmp_path / "bundle", work)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: on {GPU} ") and message in last
    assert not (tmp_path / "bundle").exists()


def test_plans_that_cannot_be_run_are_written_and_it_is_said(
    sources: Sources, tmp_path: Path, work: Path, built: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(SPOIL, "memory=100")
    bundle = tmp_path / "bundle"
    assert run(command.main, _tiny(sources, bundle, work)) == 0
    said = capsys.readouterr().err
    assert "parity on the GPU was not measured: the GPU's memory is exhausted" in said
    assert f"To run the plans there: python -m engines.verify {bundle} --run; with --against ONNX" in said
    assert _on_gpu(bundle) == []


def test_without_a_gpu_the_target_is_onnx(
    flux: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flavours, "this_machine", lambda: Machine((), {}))
    assert run(command.main, [*_flux(flux, tmp_path), "--dry-run"]) == 0
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("target onnx: no GPU is here; name the one to build plans for (--target rtx)")
    assert second.startswith("flux in bf16 for onnx: about ")


def test_a_precision_that_the_gpu_lacks_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flavours, "this_machine", lambda: Machine(("sm80",), {}, ("A100",)))
    monkeypatch.setattr(flavours, "installed", lambda: ("tensorrt",))
    assert run(command.main, ["--model", "flux", "--precision", "fp8", "--out", str(tmp_path / "bundle")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "target sm80: the GPU of this machine, A100"
    assert said[1].startswith("error: --target sm80 cannot compute in fp8: that needs sm89 or newer; choose a target")
    assert len(said) == 2


def test_tiny_stays_on_the_cpu(built: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command.main, ["--dry-run", "--out", str(tmp_path / "bundle"), "--workdir", str(tmp_path / "work")]) == 0
    assert capsys.readouterr().err.startswith("tiny in fp16 for cpu: about ")


def _engine(onnx: Path, folder: Path) -> int:
    places = ["--out", str(folder / "bundle"), "--workdir", str(folder / "work")]
    return run(engine.main, [str(onnx), "--target", "sm89", *places])


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return small_bundle.build(tmp_path / "tiny-fp32-onnx", target="onnx").root


def test_plans_of_an_onnx_bundle_are_held_to_it(
    onnx: Path, tmp_path: Path, built: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _engine(onnx, tmp_path) == 0
    assert "parity with ONNX" in capfd.readouterr().err
    found = _on_gpu(tmp_path / "bundle")
    assert len(found) == 5
    assert all(result.relative_error == 0 and result.limit == 1e-4 for result in found), "one runtime computed both"
    assert {result.network: result.shape for result in found}["conditioner"] == {
        "levels": 2, "batch": 1, "text_tokens": 12, "image_tokens": 16,
    }  # fmt: skip

    again = [str(tmp_path / "bundle"), "--run", "--against", str(onnx), "--quiet"]
    assert run(verify, again) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[1] == f"clip: error 0.0e+00 of 1e-04 (relative L2) at batch=1 on {GPU}"
    assert lines[-1].startswith("OK tiny-fp32-sm89")

    monkeypatch.setenv(SPOIL, "images=1.01")
    assert run(verify, again) == 2
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "the plan of vae_decoder differs by 1.0e-02 (relative L2) at batch=1 rows=8 columns=8, the limit" in said.err

    monkeypatch.setenv(SPOIL, "")
    other = small_bundle.build(tmp_path / "other", target="onnx", others={"t5.onnx": (onnx / "clip.onnx").read_bytes()})
    assert run(verify, [*again[:3], str(other.root)]) == 2
    assert f"was not built from {other.root}, which has another t5: give the bundle that" in capfd.readouterr().err
    assert run(verify, [*again[:3], str(tmp_path / "bundle")]) == 2
    assert "must hold plans, and" in capfd.readouterr().err


def test_a_network_too_large_for_the_cpu_is_run_alone(
    onnx: Path, tmp_path: Path, built: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_parity, "RUN_BELOW", 20_000)
    assert _engine(onnx, tmp_path) == 0
    assert "too large to be compared on this machine's CPU: backbone, clip, " in capsys.readouterr().err
    assert run(parity, [str(tmp_path / "bundle"), "--against", str(onnx)]) == 0
    lines = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert lines["clip"] == "finite; too large to be compared with its ONNX on this machine's CPU"
    assert lines["vae_decoder"].startswith("error 0.0e+00 of 1e-04 (relative L2)")


def test_without_its_gpu_a_build_says_what_was_not_measured(
    onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flavours, "this_machine", lambda: Machine(("sm86",), {}, ("another",)))
    assert _engine(onnx, tmp_path) == 0
    said = capsys.readouterr().err
    assert "parity on the GPU was not measured: no GPU of sm89 is here, only sm86. To run the plans there: " in said
    assert f"python -m engines.verify {tmp_path / 'bundle'} --run --against {onnx}" in said
