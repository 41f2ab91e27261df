"""Every way in which a build can go wrong: one clear line, nothing half-written, and what was killed resumes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engines.bundle import open_bundle
from export.assembling import stages
from export.build import main
from foundation.cli import run
from tests.export.pipelines import Sources, small_flux, small_qwen

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return small_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return small_qwen(tmp_path_factory.mktemp("qwen"))


def arguments(base: Path, adapter: Path, root: Path, *more: str) -> list[str]:
    options = ["--model", "flux", "--precision", "fp32", "--target", "onnx", "--resolutions", "256x256"]
    options += ["--base", str(base), "--adapter", str(adapter)]
    return [*options, "--workdir", str(root / "work"), "--out", str(root / "out" / "flux-fp32-onnx"), *more]


def refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command ends."""
    assert run(main, options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return error


def test_a_base_of_another_kind(
    flux: Sources, qwen: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "use the base model that the adapter" in refused(arguments(qwen.base, flux.adapter, tmp_path), capsys)
    assert "is an adapter for qwen" in refused(arguments(qwen.base, qwen.adapter, tmp_path), capsys)
    assert not list(tmp_path.iterdir())


def test_a_base_of_another_size(flux: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    shutil.copytree(flux.base, base)
    path = base / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_single_layers": config["num_single_layers"] + 1}))
    assert "use the base model" in refused(arguments(base, flux.adapter, tmp_path / "root"), capsys)


@pytest.mark.parametrize(
    ("damage", "message"), [("missing", "there is no weights file"), ("truncated", "is truncated")]
)
def test_a_damaged_shard(
    flux: Sources, tmp_path: Path, damage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(flux.base, base)
    shards = sorted((base / "transformer").glob("*.safetensors"))
    assert len(shards) > 1
    if damage == "missing":
        shards[1].unlink()
    else:
        shards[1].write_bytes(shards[1].read_bytes()[:-100])
    error = refused(arguments(base, flux.adapter, tmp_path / "root"), capsys)
    assert message in error
    assert shards[1].name in error
    assert not (tmp_path / "root").exists()


def test_layers_that_feed_nothing_cannot_be_kept_high(
    qwen: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "qwen", "--base", str(qwen.base), "--adapter", str(qwen.adapter), "--target", "onnx"]
    options += ["--precision", "fp8", "--calibration", "any.json", "--resolutions", "256x256"]
    folders = ["--workdir", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    for pattern in ("transformer_blocks.2.txt_mlp.*", "transformer_blocks.2.attn.to_add_out"):
        error = refused([*options, *folders, "--keep-high", pattern], capsys)
        assert f"--keep-high '{pattern}' matches none of the 33 layers" in error
    assert not list(tmp_path.iterdir())


def test_weights_that_cannot_be_stored_leave_nothing(
    flux: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = Path(shutil.copytree(flux.adapter, tmp_path / "adapter"))
    path = adapter / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    large = {key: tensor * 1e30 for key, tensor in tensors.items() if "blocks.1.proj_mlp.lora_" in key}
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    save_file(tensors | large, path, metadata)
    error = refused(arguments(flux.base, adapter, tmp_path / "root", "--only", "backbone"), capsys)
    assert "gives values that are not finite" in error
    files = [file.name for file in (tmp_path / "root").rglob("*") if file.is_file()]
    assert set(files) <= {"digests.json"}


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory at ``folder``; the test is skipped where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_refused_first(
    flux: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounted(tmp_path / "small", "size=64k") as small:
        error = refused(arguments(flux.base, flux.adapter, small), capsys)
        assert "are free there; choose another --workdir" in error
        assert not list(small.iterdir())


def test_a_disk_that_fills_up(
    flux: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = stages._attach

    with mounted(tmp_path / "disk", "size=24m") as disk:

        def fill(*parts: object) -> dict[str, str]:
            (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - (1 << 14)))
            return attach(*parts)  # type: ignore[arg-type]

        monkeypatch.setattr(stages, "_attach", fill)
        error = refused(arguments(flux.base, flux.adapter, disk, "--only", "backbone"), capsys)
        assert "choose another --workdir" in error
        assert not [path for path in disk.rglob("*") if path.suffix in (".onnx", ".part")]
        monkeypatch.undo()
        (disk / "filler").unlink()
        assert main(arguments(flux.base, flux.adapter, disk, "--only", "backbone")) == 0


@pytest.mark.parametrize("what", ["--out", "--workdir"])
def test_a_folder_that_cannot_be_written(
    flux: Sources, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = tmp_path / "closed"
    if os.geteuid() == 0:
        context = mounted(closed, "size=64m,ro")
    else:
        closed.mkdir(mode=0o555)
        context = None
    options = [*arguments(flux.base, flux.adapter, tmp_path / "root"), what, str(closed / "flux-fp32-onnx")]
    if context is None:
        error = refused(options, capsys)
    else:
        with context:
            error = refused(options, capsys)
    assert f"choose another {what}" in error
    assert not (tmp_path / "root").exists()


@pytest.mark.slow
def test_a_build_killed_in_each_stage_goes_on_to_the_same_bytes(flux: Sources, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.export.commands.killed_builds",
        str(flux.base),
        str(flux.adapter),
        str(tmp_path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ARCFLOW_KEYS": str(tmp_path / "keys")}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["statuses"] == [0, 0], done.stderr
    assert result["killed"] == result["events"]
    stages_killed = {event.split("\t")[0] for event in result["killed"]}
    networks = ("clip", "t5", "conditioner", "backbone", "vae_decoder")
    assert stages_killed == {"bundle", *(prefix + name for prefix in ("", "plan ") for name in networks)}
    assert result["digests"][0] == result["digests"][1] != ""
    assert open_bundle(tmp_path / "disturbed" / "flux-bf16-sm120").manifest.engine is not None
