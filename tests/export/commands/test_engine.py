"""The command from a bundle of ONNX networks to a bundle of plans, with the real builder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from engines.bundle import open_bundle
from engines.manifest import source_digest
from engines.memory.card import of_bundle
from engines.schema import Engine, Range, ShapeRange
from engines.trust import ENVIRONMENT, why_not_ours
from export import engine
from export.tensorrt import plans
from export.tensorrt.addresses import fixed_addresses
from foundation.cli import run
from foundation.files import sha256_tree
from tests.export.tensorrt.graphs import rtx
from tests.runtime import small_bundle

ROOT = Path(__file__).parents[3]
NETWORKS = ["backbone", "clip", "conditioner", "t5", "vae_decoder"]


@pytest.fixture(scope="module")
def onnx_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small FLUX-shaped bundle, for plans to be built from. Not to be changed."""
    rtx()
    return small_bundle.build(tmp_path_factory.mktemp("onnx") / "tiny-fp32-onnx", target="onnx").root


@pytest.fixture(scope="module", autouse=True)
def keys(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A folder of its own for this machine's key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, str(tmp_path_factory.mktemp("keys")))
        yield


@pytest.fixture(scope="module")
def built(onnx_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of plans that the command makes of it. Not to be changed."""
    root = tmp_path_factory.mktemp("plans")
    out = root / "tiny-fp32-sm89"
    arguments = ["--target", "sm89", "--resolutions", "32x32,64x16", "--batch", "1-2", "--opt-level", "1"]
    assert engine.main([str(onnx_bundle), *arguments, "--out", str(out), "--workdir", str(root / "work")]) == 0
    assert not [path for path in (root / "work").rglob("*") if path.is_file()], "finished plans are moved, not copied"
    return out


def test_the_bundle_of_plans_says_what_makes_it_valid(built: Path, onnx_bundle: Path) -> None:
    bundle, source = open_bundle(built), open_bundle(onnx_bundle).manifest
    manifest = bundle.manifest
    assert (manifest.model, manifest.precision, manifest.target) == ("tiny", "fp32", "sm89")
    assert manifest.parents == source.parents
    assert manifest.parity == source.parity
    digests = {entry.path: entry.sha256 for entry in source.files}
    assert isinstance(manifest.engine, Engine)
    assert (manifest.engine.flavour, manifest.engine.version) == ("tensorrt-rtx", rtx().version)
    assert (manifest.engine.compute_capabilities, manifest.engine.opt_level) == (["sm89"], 1)
    assert manifest.tools["tensorrt-rtx"] == rtx().version
    assert manifest.engine.onnx == {n: source_digest({f"{n}.onnx": digests[f"{n}.onnx"]}) for n in NETWORKS}
    for name, network in manifest.networks.items():
        assert (network.file, network.format, network.data) == (f"{name}.plan", "plan", [])
        assert (network.inputs, network.outputs) == (source.networks[name].inputs, source.networks[name].outputs)
    for name in ("clip", "t5"):
        path = f"tokenizers/{name}.json"
        assert bundle.read(path) == (onnx_bundle / path).read_bytes()


def test_it_says_what_the_plans_take_of_a_gpu(built: Path) -> None:
    manifest = open_bundle(built).manifest
    assert manifest.engine is not None
    sizes = {entry.path: entry.size for entry in manifest.files}
    assert sorted(manifest.engine.memory) == NETWORKS
    for name, memory in manifest.engine.memory.items():
        assert 0 < memory.weights < sizes[f"{name}.plan"]
        assert memory.activations >= 0
    found = of_bundle(manifest)
    assert found is not None
    assert found.basis == "builder"
    assert found.summary()["resident"]["card"] == 12


def test_profiles_and_limits_are_what_was_asked_for(built: Path) -> None:
    manifest = open_bundle(built).manifest
    assert manifest.engine is not None
    assert manifest.limits.batch == Range(1, 1, 2)
    assert manifest.limits.width == Range(32, 32, 64)
    assert manifest.limits.height == Range(16, 32, 32)
    backbone = manifest.engine.profiles["backbone"]
    assert backbone["hidden_states"] == ShapeRange([1, 16, 16], [1, 16, 16], [2, 16, 16])
    assert backbone["context"] == ShapeRange([1, 12, 32], [1, 12, 32], [2, 12, 32])
    assert manifest.engine.profiles["conditioner"]["timestep"] == ShapeRange([1], [2], [16])
    latents = manifest.engine.profiles["vae_decoder"]["latents"]
    assert latents == ShapeRange([1, 4, 4, 8], [1, 4, 8, 8], [2, 4, 8, 16])


def test_the_plans_carry_this_machines_seal(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = open_bundle(built).manifest
    assert why_not_ours(manifest) is None
    assert manifest.engine is not None
    other = msgspec.structs.replace(manifest.engine, seal="")
    assert why_not_ours(msgspec.structs.replace(manifest, engine=other))
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    assert why_not_ours(manifest)


def test_the_same_command_gives_the_same_bytes(built: Path, onnx_bundle: Path, tmp_path: Path) -> None:
    with fixed_addresses() as fixed:
        pass
    if not fixed:
        pytest.skip("this system gives a program other addresses each time, and TensorRT's order depends on them")
    out = tmp_path / "again"
    arguments = ["--target", "sm89", "--resolutions", "32x32,64x16", "--batch", "1-2", "--opt-level", "1"]
    options = ["--out", str(out), "--workdir", str(tmp_path / "work")]
    assert engine.main([str(onnx_bundle), *arguments, *options]) == 0
    assert sha256_tree(out) == sha256_tree(built)


def test_the_report_is_one_json_line(
    onnx_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "tiny-fp32-rtx"
    options = ["--target", "rtx", "--out", str(out), "--workdir", str(tmp_path / "work")]
    assert engine.main([str(onnx_bundle), *options]) == 0
    said = capsys.readouterr()
    line = json.loads(said.out)
    assert said.out.count("\n") == 1
    assert line["bundle"] == str(out)
    assert line["capabilities"] == ["sm120", "sm89"]
    assert list(line["plans"]) == NETWORKS
    found = of_bundle(open_bundle(out).manifest)
    assert found is not None
    assert line["memory"] == found.summary()
    assert all(text in said.err for text in found.lines())
    sizes = {entry.path: entry.size for entry in open_bundle(out).manifest.files}
    for name, plan in line["plans"].items():
        assert plan["bytes"] == sizes[f"{name}.plan"]
        assert plan["counted_by"] == "parsed network"
        assert plan["products_fp8"] == 0
    assert line["plans"]["backbone"]["products"] >= 4
    assert "B of memory" in said.err
    assert "no GPU here opens these plans" in said.err


def test_an_interrupted_build_goes_on_with_the_complete_plans(
    onnx_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    command = [str(onnx_bundle), "--target", "sm120", "--out", str(out), "--workdir", str(work)]
    original, built = plans.build_plan, []

    def stop_at_t5(path: Path, *arguments, **options):  # type: ignore[no-untyped-def]
        built.append(options["name"])
        if options["name"] == "t5" and len(built) == 4:
            raise KeyboardInterrupt
        return original(path, *arguments, **options)

    monkeypatch.setattr(plans, "build_plan", stop_at_t5)
    assert run(engine.main, command) == 130
    assert not out.exists()
    clip = next(work.rglob("clip.plan"))
    clip.write_bytes(clip.read_bytes()[:-1] + b"\0")
    moved = work.rename(tmp_path / "moved")
    assert run(engine.main, [*command[:-1], str(moved)]) == 0
    assert built == ["backbone", "clip", "conditioner", "t5", "clip", "t5", "vae_decoder"]
    open_bundle(out)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_a_killed_command_leaves_no_bundle_and_can_be_run_again(onnx_bundle: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "out" / "tiny-fp32-sm89", tmp_path / "work"
    command = [sys.executable, "-m", "export.engine", str(onnx_bundle), "--target", "sm89"]
    command += ["--out", str(out), "--workdir", str(work)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not list(work.rglob("backbone.plan")) and time.monotonic() < deadline:
            time.sleep(0.005)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(process.pid, signal.SIGKILL)
    assert not out.exists()
    for child in children:
        while _alive(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not _alive(child), "the builder outlived who asked"
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["bundle"] == str(out)
    assert not [path for path in work.rglob("*") if path.is_file()]


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "sm70"], "--target sm70: no plan can be built for it"),
        (["--target", "sm90"], "--target sm90 needs tensorrt, not installed here: pip install tensorrt-cu13"),
        (["--target", "sm89", "--flavour", "fast"], "--flavour fast does not build for sm89"),
        (["--target", "sm89", "--resolutions", "40x36"], "the height 36 is not possible"),
        (["--target", "sm89", "--batch", "9"], "--batch 9 is not possible; the model takes 1 to 4"),
        (["--target", "sm89", "--text-tokens", "512"], "--text-tokens 512 is not possible; the model takes 12 to 12"),
        (["--target", "sm89", "--opt-level", "9"], "--opt-level 9 is not possible; allowed: 0 to 5"),
        (["--target", "sm89", "--out", "."], "exists and is not a bundle"),
    ],
)
def test_wrong_options_are_one_line_before_any_work(
    onnx_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    from export.tensorrt import flavours

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flavours, "installed", lambda: ("tensorrt-rtx",))
    (tmp_path / "a file").write_bytes(b"")
    assert run(engine.main, [str(onnx_bundle), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


def test_plans_are_not_built_from_plans_nor_onto_their_source(
    built: Path, onnx_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ["--workdir", str(tmp_path / "work")]
    assert run(engine.main, [str(built), "--target", "sm120", *work]) == 2
    assert "holds plans for sm89" in capsys.readouterr().err
    assert run(engine.main, [str(onnx_bundle), "--target", "sm89", "--out", str(onnx_bundle), *work]) == 2
    assert "is the bundle that is read" in capsys.readouterr().err
    assert run(engine.main, [str(tmp_path / "none"), "--target", "sm89", *work]) == 2
    assert "there is no bundle" in capsys.readouterr().err


def test_shorter_text_makes_shorter_prompts(onnx_bundle: Path) -> None:
    manifest = open_bundle(onnx_bundle).manifest
    limits = msgspec.structs.replace(manifest.limits, text_tokens=Range(1, 8, 12))
    tokenizers = {**manifest.tokenizers, "t5": msgspec.structs.replace(manifest.tokenizers["t5"], drop=2)}
    manifest = msgspec.structs.replace(manifest, limits=limits, tokenizers=tokenizers)
    from export.tensorrt.build import Options
    from export.tensorrt.profiles import choose_shapes
    from export.tensorrt.targets import TARGETS

    setup = plans.Setup(TARGETS["sm89"], rtx(), choose_shapes(limits, text_tokens="8"), Options())
    profiles = plans.network_profiles(manifest, setup.shapes)
    assert profiles["t5"]["input_ids"] == ShapeRange([1, 10], [1, 10], [4, 10])
    assert profiles["conditioner"]["encoder_hidden_states"].max == [4, 8, 64]
    assert profiles["clip"]["input_ids"].max == [4, small_bundle.CLIP_TOKENS]
    narrowed = {name: plans._narrow(manifest, name, setup.shapes).max_tokens for name in manifest.tokenizers}
    assert narrowed == {"clip": small_bundle.CLIP_TOKENS, "t5": 10}


def test_a_plan_is_known_by_all_that_it_is_made_from() -> None:
    from dataclasses import replace

    from export.sources.models import MODELS
    from export.tensorrt.build import Options
    from export.tensorrt.profiles import choose_shapes
    from export.tensorrt.targets import TARGETS

    toolkit = rtx()
    setup = plans.Setup(TARGETS["sm89"], toolkit, choose_shapes(MODELS["flux"].limits), Options())
    profile = {"x": ShapeRange([1, 4], [1, 4], [2, 4])}
    keys = {
        plans._key("t5", "digest", profile, setup),
        plans._key("clip", "digest", profile, setup),
        plans._key("t5", "another", profile, setup),
        plans._key("t5", "digest", {"x": ShapeRange([1, 4], [1, 4], [3, 4])}, setup),
        plans._key("t5", "digest", profile, replace(setup, target=TARGETS["rtx"])),
        plans._key("t5", "digest", profile, replace(setup, toolkit=replace(toolkit, version="0"))),
        plans._key("t5", "digest", profile, replace(setup, toolkit=replace(toolkit, flavour="tensorrt"))),
        plans._key("t5", "digest", profile, replace(setup, options=Options(opt_level=0))),
        plans._key("t5", "digest", profile, replace(setup, options=Options(workspace=1))),
    }
    assert len(keys) == 9


def test_help_shows_what_a_user_would_type(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        engine.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "flux-fp8-onnx --target sm120" in text
    assert "qwen-bf16-onnx --target rtx" in text
