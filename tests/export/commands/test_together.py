"""Builds at the same time: each bundle is what it would be had it been built alone, and who waits says for whom."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines.bundle import Bundle, open_bundle
from engines.manifest import source_digest
from engines.trust import ENVIRONMENT
from export import build as command
from export import engine
from export.assembling import bundle as bundle_stage
from export.calibrate import main as calibrate
from export.errors import ExportError
from export.folders.locks import alone
from export.tensorrt.addresses import fixed_addresses
from export.tensorrt.build import Options, build_plan
from export.tensorrt.targets import TARGETS
from foundation.cli import run
from foundation.files import sha256_file, sha256_tree
from tests.export.conftest import Built, Sources, arguments
from tests.export.tensorrt.graphs import rtx
from tests.runtime import small_bundle

ROOT = Path(__file__).parents[3]
SMALL, WIDE = ("--resolutions", "32x32", "--batch", "1"), ("--resolutions", "64x32", "--batch", "1-2")


@pytest.fixture(scope="module", autouse=True)
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder of its own for this machine's key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, str(tmp_path_factory.mktemp("keys")))
        yield


@pytest.fixture(scope="module")
def onnx_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small FLUX-shaped bundle, for plans to be built from. Not to be changed."""
    rtx()
    return small_bundle.build(tmp_path_factory.mktemp("onnx") / "tiny-fp32-onnx", target="onnx").root


@pytest.fixture(scope="module")
def alone_built(onnx_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Sequence[str], str]:
    """Digest of the bundle of plans by its shapes, each built with nothing beside it."""
    with fixed_addresses() as fixed:
        pass
    if not fixed:
        pytest.skip("this system gives a program other addresses each time, and TensorRT's order depends on them")
    digests = {}
    for shapes in (SMALL, WIDE):
        root = tmp_path_factory.mktemp("alone")
        assert engine.main(plans_of(onnx_bundle, root / "out", root / "work", shapes)) == 0
        digests[shapes] = sha256_tree(root / "out")
    return digests


def plans_of(bundle: Path, out: Path, workdir: Path, shapes: Sequence[str]) -> list[str]:
    options = ["--target", "sm89", "--opt-level", "0", *shapes]
    return [str(bundle), *options, "--out", str(out), "--workdir", str(workdir)]


def start(module: str, options: Sequence[str]) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", module, *options], cwd=ROOT, **pipes)  # type: ignore[call-overload,no-any-return]


@contextmanager
def held(workdir: Path) -> Iterator[None]:
    """A work folder that this process builds in."""
    with alone(workdir, lambda: None, lambda text: pytest.fail(text)):
        yield


def said_by(process: subprocess.Popen[str]) -> str:
    """The line in which a process says for whom it waits."""
    assert process.stderr is not None
    return next((line for line in process.stderr if line.startswith("waiting for ")), "")


@pytest.mark.parametrize(
    ("outs", "shapes"),
    [(("a", "a"), (SMALL, SMALL)), (("a", "b"), (SMALL, SMALL)), (("a", "b"), (SMALL, WIDE))],
    ids=["same out", "other out", "other shapes"],
)
def test_plans_of_one_work_folder(
    onnx_bundle: Path, alone_built: dict[Sequence[str], str], tmp_path: Path, outs: Sequence[str],
    shapes: Sequence[Sequence[str]],
) -> None:  # fmt: skip
    work = tmp_path / "work"
    with held(work):
        builds = [
            start("export.engine", plans_of(onnx_bundle, tmp_path / out, work, asked))
            for out, asked in zip(outs, shapes, strict=True)
        ]
        for process in builds:
            line = said_by(process)
            assert line.startswith(f"waiting for process {os.getpid()} (since 20")
            assert shlex.join(sys.orig_argv[1:])[:100] in line
            assert line.endswith(f"), which builds in {work}; another --workdir would not wait\n")
    for process in builds:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    assert [sha256_tree(tmp_path / out) for out in outs] == [alone_built[asked] for asked in shapes]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*outs, "work"})
    assert not list(work.iterdir())


def test_one_bundle_from_two_work_folders(
    onnx_bundle: Path, alone_built: dict[Sequence[str], str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    works = [tmp_path / "one", tmp_path / "two"]
    builds = [start("export.engine", plans_of(onnx_bundle, out, work, SMALL)) for work in works]
    for process in builds:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    assert sha256_tree(out) == alone_built[SMALL]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out", "two"]


@pytest.mark.slow
def test_whole_builds_of_one_work_folder(sources: Sources, tmp_path: Path) -> None:
    scales, work = tmp_path / "scales.json", tmp_path / "work"
    folders = ["--base", str(sources.base), "--adapter", str(sources.adapter)]
    assert calibrate([*folders, "--num", "2", "--out", str(scales), "--workdir", str(tmp_path / "calibrate")]) == 0
    fp8 = ["--precision", "fp8", "--calibration", str(scales)]
    wanted = {"small": [*fp8, *SMALL], "wide": [*fp8, *WIDE], "bf16": ["--precision", "bf16", *SMALL]}
    common = ["--target", "sm89", "--opt-level", "0"]
    builds = {
        name: start("export.build", [*arguments(sources, tmp_path / name, work), *common, *options])
        for name, options in wanted.items()
    }
    said = {name: process.communicate(timeout=500)[1] for name, process in builds.items()}
    assert {name: process.returncode for name, process in builds.items()} == dict.fromkeys(wanted, 0), said
    assert sum("waiting for process" in text for text in said.values()) == 2
    assert not list(work.glob("plan-*"))
    bundles = {name: open_bundle(tmp_path / name) for name in wanted}
    assert {name: bundle.manifest.precision for name, bundle in bundles.items()} == {
        "small": "fp8", "wide": "fp8", "bf16": "bf16",
    }  # fmt: skip
    for name, bundle in bundles.items():
        assert sha256_file(bundle.root / "backbone.plan") == again(bundle, work, tmp_path / f"{name}.plan"), name


def again(bundle: Bundle, work: Path, out: Path) -> str:
    """The digest of a bundle's backbone, built once more from the ONNX and for the shapes that its manifest names."""
    made = bundle.manifest.engine
    assert made is not None
    for onnx in work.glob("backbone-*/backbone.onnx"):
        files = {name: sha256_file(onnx.with_name(name)) for name in ("backbone.onnx", "backbone.safetensors")}
        if source_digest(files) == made.onnx["backbone"]:
            report = build_plan(
                onnx, out, target=TARGETS["sm89"], profile=made.profiles["backbone"], toolkit=rtx(), name="backbone",
                options=Options(opt_level=0),
            )  # fmt: skip
            return report.sha256
    raise AssertionError("the ONNX that the bundle names is not there")


HOLDER = """
import sys, time
from pathlib import Path
from export.folders.locks import alone
with alone(Path(sys.argv[1]), lambda: None, print):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    work = tmp_path / "work"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(work)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        os.kill(holder.pid, signal.SIGKILL)
    assert (work / ".lock").is_file()
    with held(work):
        pass
    assert not list(work.iterdir())


def test_what_is_missing_while_another_builds_is_looked_at_again_after_it(tmp_path: Path) -> None:
    work, checks = tmp_path / "work", []
    with pytest.raises(ExportError, match="no room"), alone(work, lambda: refuse(), pytest.fail):
        pass
    assert not work.exists(), "a rejected build leaves nothing"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(work)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with alone(work, lambda: checks.append(holder.poll()), lambda _: holder.kill()):
            pass
    assert checks == [-signal.SIGKILL], "it must not be rejected for what the other build takes"


def refuse() -> None:
    raise ExportError("no room")


def test_a_folder_that_cannot_be_locked_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "work" / ".lock").mkdir(parents=True)
    message = r"cannot lock .*/work/\.lock: Is a directory; choose another --workdir"
    with pytest.raises(ExportError, match=message), held(tmp_path / "work"):
        pytest.fail("the block must not run")


def test_a_plan_that_was_changed_does_not_enter_a_bundle(
    onnx_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    described = engine.plan_manifest

    def change(*parts):  # type: ignore[no-untyped-def]
        plan = next(work.rglob("t5.plan"))
        plan.write_bytes(plan.read_bytes() + b"\0")
        return described(*parts)

    monkeypatch.setattr(engine, "plan_manifest", change)
    assert run(engine.main, plans_of(onnx_bundle, out, work, SMALL)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: t5.plan is not what was made for this bundle: ")
    assert "run the command again" in error
    assert not out.exists()
    monkeypatch.undo()
    assert engine.main(plans_of(onnx_bundle, out, work, SMALL)) == 0
    open_bundle(out)


def test_a_network_that_was_changed_does_not_enter_a_bundle(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    out, work = tmp_path / "tiny-fp32-cpu", Path(shutil.copytree(built.workdir, tmp_path / "work"))
    original = bundle_stage.assemble

    def change(*parts):  # type: ignore[no-untyped-def]
        onnx = next(work.rglob("t5.onnx"))
        onnx.write_bytes(onnx.read_bytes()[:-1])
        return original(*parts)

    monkeypatch.setattr(bundle_stage, "assemble", change)
    assert run(command.main, arguments(built.sources, out, work)) == 2
    assert "error: t5.onnx is not what was made for this bundle: " in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.undo()
    assert command.main(arguments(built.sources, out, work)) == 0
    assert sha256_tree(out) == sha256_tree(built.bundle)
