"""``python -m engines.list``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.list import main
from engines.locate import ENVIRONMENT
from engines.memory.card import of_bundle
from engines.schema import NETWORKS, PlanMemory
from engines.trust import sealed
from foundation.cli import run
from tests.runtime import small_bundle, small_plans
from tests.runtime.small_bundle import flip


@pytest.fixture
def root(tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bundle of each status."""
    root = tmp_path / "bundles"
    small_bundle.build(root / "tiny-fp32-cpu")
    damaged = small_bundle.build(root / "small-fp32-cpu", model="small").root
    (damaged / "clip.onnx").write_bytes(flip((damaged / "clip.onnx").read_bytes(), 5))
    small_plans.build(root / "tiny-fp16-sm89", finish=sealed)
    small_plans.build(root / "tiny-fp16-rtx", "rtx")
    small_bundle.build(root / "renamed-fp32-cpu")
    (root / "empty-fp32-cpu").mkdir()
    (root / "notes").mkdir()
    monkeypatch.setenv(ENVIRONMENT, str(root))
    monkeypatch.setattr("engines.locate.BUILT_IN", tmp_path / "none")
    return root


def _rows(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, dict[str, Any]]:
    assert run(main, ["--json", *options]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_every_bundle_with_its_status(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows(capsys)
    status = {name: row["status"] for name, row in rows.items()}
    assert status == {
        "empty-fp32-cpu": "damaged",
        "renamed-fp32-cpu": "damaged",
        "small-fp32-cpu": "damaged",
        "tiny-fp16-rtx": "stale",
        "tiny-fp16-sm89": "verified",
        "tiny-fp32-cpu": "verified",
    }
    assert "clip.onnx" in rows["small-fp32-cpu"]["why"]
    assert "manifest.json" in rows["empty-fp32-cpu"]["why"]
    assert "it holds tiny-fp32-cpu" in rows["renamed-fp32-cpu"]["why"]
    assert "no seal" in rows["tiny-fp16-rtx"]["why"]
    assert rows["tiny-fp16-rtx"]["engine"] == "tensorrt-rtx 1.7.1.116"
    default = rows["tiny-fp32-cpu"]
    assert default["path"] == str(root / "tiny-fp32-cpu")
    assert default["architecture"] == "flux"
    assert default["limits"] == "16-64 x 16-64 px, batch 1-4, text 12"
    assert default["size"] == sum(path.stat().st_size for path in (root / "tiny-fp32-cpu").rglob("*.*n*")) - (
        (root / "tiny-fp32-cpu" / "manifest.json").stat().st_size
    )


def test_quick_reads_no_contents(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows(capsys, "--quick")
    assert rows["small-fp32-cpu"]["status"] == "listed"
    assert rows["tiny-fp32-cpu"]["status"] == "listed"
    assert rows["empty-fp32-cpu"]["status"] == "damaged"
    assert rows["tiny-fp16-rtx"]["status"] == "stale"


def test_the_table_has_a_line_a_bundle_and_one_for_what_is_wrong(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, []) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["name", "architecture"]
    below = [line for line in lines if line.startswith("    ")]
    assert len(lines) == 1 + 6 + len(below)
    assert len(below) == 4 + 2 * 2, "what is wrong with four, and of two what they take of a GPU"
    assert sum(line.startswith("    on a GPU") for line in below) == 2


def test_what_a_bundle_takes_of_a_gpu(
    tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "bundles"))
    monkeypatch.setattr("engines.locate.BUILT_IN", tmp_path / "none")
    memory = dict.fromkeys(NETWORKS["flux"], PlanMemory(weights=3 * 10**9, activations=10**9))
    made = small_plans.build(tmp_path / "bundles" / "tiny-fp16-sm89", finish=sealed, memory=memory)
    small_bundle.build(tmp_path / "bundles" / "tiny-fp32-cpu")
    rows = _rows(capsys, "--quick")
    expected = of_bundle(made.manifest)
    assert expected is not None
    assert rows["tiny-fp16-sm89"]["memory"] == expected.summary()
    assert expected.summary()["resident"]["card"] == 16
    assert rows["tiny-fp32-cpu"]["memory"] is None
    assert run(main, ["--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [f"    {line}" for line in expected.lines()] == lines[2:4]
    assert len(lines) == 5


def test_a_key_that_is_open_to_others_makes_plans_stale_not_damaged(
    root: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (keys / "plans.key").chmod(0o644)
    row = _rows(capsys)["tiny-fp16-sm89"]
    assert row["status"] == "stale"
    assert "chmod 600" in row["why"]


def test_nothing_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("engines.locate.BUILT_IN", tmp_path)
    assert run(main, []) == 0
    assert capsys.readouterr().out == "no bundles; to make one, run: python -m export.build\n"
    assert sealed(small_bundle.manifest()).engine is None
