"""The command from sources to bundle: what it writes, again and again the same, and what it rejects."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.bundle import open_bundle
from export import build as command
from export.assembling import graph, parity, stages
from foundation.cli import run
from foundation.files import sha256_tree
from tests.export.conftest import MODES, Built, Sources, arguments

ROOT = Path(__file__).parents[3]


def test_the_bundle_says_what_it_was_made_from(built: Built) -> None:
    manifest = open_bundle(built.bundle).manifest
    assert (manifest.model, manifest.precision, manifest.target) == ("tiny", "fp32", "cpu")
    assert set(manifest.networks) == {"clip", "t5", "conditioner", "backbone", "vae_decoder"}
    assert manifest.networks["backbone"].outputs[0].shape == ["batch", "image_tokens", MODES, 16]
    schedule = manifest.schedule
    assert (schedule.shift, schedule.guidance, schedule.nfe, schedule.final_step_ratio) == (1.7, 2.5, 2, 1.0)
    assert schedule.conditioning_dtype == "float32"
    latent = manifest.latent
    assert (latent.vae_factor, latent.scaling_factor, latent.shift_factor) == (4, [1.2], [0.1])
    assert manifest.momentum.modes == MODES
    assert manifest.tokenizers["t5"].pad_id == 0
    assert manifest.tokenizers["clip"].max_tokens == 24
    assert manifest.parents["adapter"] == sha256_tree(built.sources.adapter)
    folders = ("text_encoder", "text_encoder_2", "transformer", "vae")
    base = "".join(f"{name}\0{sha256_tree(built.sources.base / name)}\n" for name in folders)
    assert manifest.parents["base"] == hashlib.sha256(base.encode()).hexdigest()
    assert "torch" in manifest.tools


def test_another_process_writes_the_same_bytes(built: Built, tmp_path: Path) -> None:
    out = tmp_path / "tiny-fp32-cpu"
    code = "import sys; from export.build import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run(
        [sys.executable, "-c", code, *arguments(built.sources, out, tmp_path / "work")],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        check=True,
        capture_output=True,
    )
    assert sha256_tree(out) == sha256_tree(built.bundle)


def test_complete_stages_are_not_done_again(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise AssertionError("this stage was complete")

    monkeypatch.setattr(graph, "trace", fail)
    out = tmp_path / "tiny-fp32-cpu"
    assert command.main(arguments(built.sources, out, built.workdir)) == 0
    assert sha256_tree(out) == sha256_tree(built.bundle)


def test_an_altered_stage_result_is_not_trusted(built: Built, tmp_path: Path) -> None:
    work = Path(shutil.copytree(next(built.workdir.glob("t5-*")), tmp_path / "t5"))
    assert stages.read_record(work) is not None
    graph_file = work / "t5.onnx"
    graph_file.write_bytes(graph_file.read_bytes() + b"\0")
    assert stages.read_record(work) is None
    (work / stages.RECORD).write_text("{}")
    assert stages.read_record(work) is None


def test_a_parity_miss_exits_and_writes_nothing(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parity, "LIMITS", {"fp32": 1e-12})
    out = tmp_path / "out" / "tiny-fp32-cpu"
    assert run(command.main, arguments(sources, out, tmp_path / "work")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the exported clip differs from the original")
    assert not out.parent.exists()
    assert not list((tmp_path / "work").rglob("*.onnx"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "sd3"], "--model sd3 cannot be built; allowed: tiny, flux, qwen"),
        (["--precision", "int4"], "--precision int4 is unknown; allowed: fp32, fp16, bf16, fp8"),
        (["--target", "sm70"], "--target sm70 is unknown; allowed: cpu, onnx, sm80"),
        (["--precision", "bf16"], "--precision bf16 cannot run on a CPU"),
        (["--precision", "fp8", "--target", "sm86"], "--target sm86 cannot compute in fp8"),
        (["--keep-high", "*.to_q"], "--keep-high and --attention are for --precision fp8"),
        (["--precision", "fp8", "--attention", "fp8"], "--attention fp8 is for GPUs"),
        (["--precision", "fp8", "--gate", "nan"], "--gate nan is no limit: it must be a number above 0"),
        (["--precision", "fp8", "--gate", "-1"], "--gate -1.0 is no limit"),
        (["--precision", "fp8", "--gate", "inf"], "--gate inf is no limit"),
        (["--precision", "fp8", "--keep-high", "*"], "--keep-high leaves no layer to quantise"),
        (["--precision", "fp8", "--keep-high", "nothing.*"], "--keep-high 'nothing.*' matches none of the 44 layers"),
        (["--resolutions", "72x64"], "--resolutions 72x64"),
        (["--only", "unet"], "--only unet: the networks are clip, t5, conditioner, backbone, vae_decoder"),
        (["--lora", "no-such.safetensors"], "no-such.safetensors"),
        (["--base", "./no/such"], "no/such"),
    ],
)
def test_what_cannot_be_built_is_one_clear_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(command.main, [*options, "--out", str(tmp_path / "tiny-fp32-cpu")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def _drop_pad(path: Path) -> None:
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))


BASE_FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated VAE": ("vae/diffusion_pytorch_model.safetensors", _truncate, "truncated"),
    "truncated T5": ("text_encoder_2/model.safetensors", _truncate, "truncated"),
    "no T5 configuration": ("text_encoder_2/config.json", Path.unlink, "text_encoder_2/config.json"),
    "no tokenizer": ("tokenizer/tokenizer.json", Path.unlink, "tokenizer has neither tokenizer.json nor vocab.json"),
    "damaged tokenizer": ("tokenizer_2/tokenizer.json", lambda path: path.write_text("{"), "is damaged"),
    "no padding token": ("tokenizer_2/tokenizer_config.json", _drop_pad, "no padding token"),
    "no VAE factor": ("vae/config.json", lambda path: path.write_text("{}"), "lacks latent_channels"),
}


@pytest.mark.parametrize("fault", BASE_FAULTS)
def test_a_faulty_base_is_one_clear_line(
    sources: Sources, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, damage, message = BASE_FAULTS[fault]
    base = tmp_path / "base"
    shutil.copytree(sources.base, base)
    damage(base / name)
    out, work = tmp_path / "out" / "tiny-fp32-cpu", tmp_path / "work"
    assert run(command.main, arguments(Sources(base, sources.adapter), out, work)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not out.parent.exists()
    assert not work.exists()


def test_a_folder_that_is_no_bundle_is_not_replaced(
    sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    assert run(command.main, arguments(sources, out, tmp_path / "work")) == 2
    assert "is not a bundle: it will not be replaced" in capsys.readouterr().err
    assert (out / "letter.txt").read_text() == "dear"


def test_an_output_that_cannot_be_written_is_refused_first(
    sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "tiny-fp32-cpu"
    assert run(command.main, arguments(sources, out, tmp_path / "work")) == 2
    error = capsys.readouterr().err
    assert f"cannot write {out}: {tmp_path}/file is a file, and a folder is needed there; choose another --out" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "work").exists()


def test_too_little_disk_is_refused_first(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert run(command.main, arguments(sources, tmp_path / "tiny-fp32-cpu", tmp_path / "work")) == 2
    assert "1,000 are free" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
