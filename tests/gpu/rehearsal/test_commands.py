"""Both commands for a machine with a GPU, from end to end at toy sizes, on a machine that is played (see played.py).

The second runs in a tree without models and bundles, as it is sent: it finds those that the first has kept.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import ArcFlowError
from gpu.travel import prepare, site
from tests.gpu.rehearsal.played import play
from tests.runtime.cuda import host_library
from tests.runtime.cuda.host_library import ROOT

pytestmark = pytest.mark.skipif(host_library.compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is prepared: first/cache with the kernels, second/site.tar.xz with a package of one module."""
    made = tmp_path_factory.mktemp("gpu")
    compiling = {**os.environ, "ARCFLOW_CACHE": str(made / "first" / "cache")}
    code = "from gpu.travel import prepare; prepare.compile_kernels(90)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=compiling)
    (made / "second").mkdir()
    with tarfile.open(made / "second" / "site.tar.xz", "w:xz") as archive:
        module = made / "carried.py"
        module.write_text("")
        archive.add(module, arcname="carried.py")
    return made


def _run(which: str, folder: Path, tree: Path) -> tuple[int, dict[str, Any], str]:
    environment = play(folder / f"played-{which}") | {
        "PYTHON": sys.executable,
        "ARCFLOW_REHEARSE": "1",
        "ARCFLOW_KEPT": str(folder / "kept"),
    }
    environment.pop("PYTHONPATH", None)
    command = ["sh", "gpu/travel/on_gpu.sh", which, str(folder / which), str(folder / "out")]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    record = json.loads((folder / "out" / f"{which}.json").read_text())
    assert record["machine"]["gpus"][0]["name"] == "NVIDIA H100 played" and record["command"].startswith("python gpu/")
    return done.returncode, record["parts"], done.stdout + done.stderr


def _held(part: dict[str, Any]) -> bool:
    return all(record["held"] for record in part["records"] if record.get("check"))


@pytest.mark.slow
def test_both_commands(folder: Path, tmp_path: Path) -> None:
    code, parts, said = _run("first", folder, ROOT)
    assert code == 0, said
    assert list(parts) == ["scenarios", "machine", "graphs", "solver", "sanitizer"]
    assert all(part["state"] == "done" and _held(part) for part in parts.values()), said
    assert parts["scenarios"]["records"][0]["card"]["watts"] == pytest.approx(654.3)
    assert [record["what"] for record in parts["sanitizer"]["records"]] == [
        f"sanitizer: {tool}" for tool in ("memcheck", "racecheck", "initcheck", "synccheck")
    ]
    gap = next(record for record in parts["graphs"]["records"] if record["what"].endswith("as a graph"))
    assert gap["how"] == "replayed" and gap["bound_s"] > 0 and gap["held"] is None  # Only 4,096 tokens are held to it.

    tree = tmp_path / "tree"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(tuple(f"{kept}/" for kept in prepare.KEPT)):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    code, parts, said = _run("second", folder, tree)
    assert code == 0, said
    assert list(parts) == ["provider", "flux", "training", "distil"]
    assert all(part["state"] == "done" and _held(part) for part in parts.values()), said
    assert {"FLUX, eager", "FLUX, image", "FLUX, prompt to image"} <= {r["what"] for r in parts["flux"]["records"]}
    assert (folder / "kept" / "site" / "carried.py").is_file()


def test_an_unknown_command_says_which_there_are() -> None:
    done = subprocess.run(
        ["sh", "gpu/travel/on_gpu.sh", "third"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "first|second" in done.stderr


def test_sizes_are_said_and_what_is_too_much_is_refused(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(1_500_000))
    said = prepare.what_to_send(tmp_path, 66)
    tree, kept = prepare.tree_bytes(ROOT), sum(prepare.size_of(ROOT / name) for name in prepare.KEPT)
    assert f"({(tree + 1_500_000) / 1e6:.1f} MB together)" in said
    assert f"({(tree - kept + 1_500_000) / 1e6:.1f} MB together)" in said
    assert f"sh gpu/travel/on_gpu.sh second {tmp_path / 'second'}" in said
    with pytest.raises(ArcFlowError, match="first command would send"):
        prepare.what_to_send(tmp_path, 20)


def test_the_packages_are_those_that_parts_need() -> None:
    names = {package.partition("==")[0] for package in site.PACKAGES}
    assert names == {"onnxruntime-gpu", "msgspec", "diffusers", "nvidia-cudnn-frontend"}
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    for package in site.PACKAGES:
        name, _, version = package.partition("==")
        assert pinned.get(name, version) == version
