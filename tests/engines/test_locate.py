"""Bundles are found by name, the user's own before the built-in ones."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from engines.errors import BundleNotFoundError
from engines.locate import (
    BUILT_IN,
    ENVIRONMENT,
    BundleName,
    available,
    default_roots,
    find,
    locate,
    parse_name,
    rebuild_hint,
)


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    for folder in ("a/tiny-fp32-cpu", "a/tiny-fp16-cpu", "b/tiny-fp32-cpu", "b/tiny-fp8-sm89", "b/flux-dev-bf16-sm120"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "a" / "notes").mkdir()
    (tmp_path / "a" / "other-fp32-cpu").write_text("not a folder")
    return [tmp_path / "a", tmp_path / "missing", tmp_path / "b"]


def test_lists_every_bundle_once_first_root_first(roots: list[Path]) -> None:
    found = available(roots)
    assert sorted(map(str, found)) == ["flux-dev-bf16-sm120", "tiny-fp16-cpu", "tiny-fp32-cpu", "tiny-fp8-sm89"]
    assert found[BundleName("tiny", "fp32", "cpu")].parent == roots[0]


@pytest.mark.parametrize(
    ("wanted", "folder"),
    [
        (("tiny",), "tiny-fp32-cpu"),
        (("tiny", "fp16"), "tiny-fp16-cpu"),
        (("tiny", None, "sm89"), "tiny-fp8-sm89"),
        (("tiny", "fp8", "sm89"), "tiny-fp8-sm89"),
        (("flux-dev",), "flux-dev-bf16-sm120"),
    ],
)
def test_finds(roots: list[Path], wanted: tuple[str, ...], folder: str) -> None:
    assert locate(*wanted, roots=roots).name == folder


@pytest.mark.parametrize(
    ("there", "first"),
    [
        (("m-fp8-cpu", "m-fp16-cpu", "m-fp16-sm120"), "m-fp16-cpu"),
        (("m-fp8-sm120", "m-bf16-sm89", "m-bf16-onnx"), "m-fp8-sm120"),
        (("m-fp32-sm90", "m-fp8-sm90", "m-fp16-sm90", "m-bf16-sm90"), "m-bf16-sm90"),
        (("m-fp8-rtx", "m-fp8-onnx"), "m-fp8-rtx"),
        (("m-fp8-sm120", "m-fp8-sm89"), "m-fp8-sm120"),
    ],
)
def test_what_comes_first_where_the_choice_is_open(tmp_path: Path, there: tuple[str, ...], first: str) -> None:
    for name in there:
        (tmp_path / name).mkdir()
    assert locate("m", roots=[tmp_path]).name == first


def test_a_plan_for_several_gpus_serves_each_and_one_for_that_gpu_serves_it_better(tmp_path: Path) -> None:
    (tmp_path / "m-fp8-rtx").mkdir()
    assert locate("m", target="sm89", roots=[tmp_path]).name == "m-fp8-rtx"
    assert locate("m", target="rtx", roots=[tmp_path]).name == "m-fp8-rtx"
    with pytest.raises(BundleNotFoundError):
        locate("m", target="sm90", roots=[tmp_path])
    (tmp_path / "m-fp8-sm89").mkdir()
    assert locate("m", target="sm89", roots=[tmp_path]).name == "m-fp8-sm89"


def test_by_its_whole_name(roots: list[Path]) -> None:
    assert find("tiny-fp16-cpu", roots) == roots[0] / "tiny-fp16-cpu"
    assert find("tiny", roots) == roots[0] / "tiny-fp32-cpu"
    with pytest.raises(BundleNotFoundError):
        find("tiny-fp4-cpu", roots)


@pytest.mark.parametrize("wanted", [("huge",), ("tiny", "fp4"), ("tiny", "fp8", "cpu"), ("",), ("../tiny",)])
def test_says_what_there_is(roots: list[Path], wanted: tuple[str, ...]) -> None:
    with pytest.raises(BundleNotFoundError, match=r"available: flux-dev-bf16-sm120, tiny-fp16-cpu.*export\.build"):
        locate(*wanted, roots=roots)


@pytest.mark.parametrize(
    ("wanted", "command"),
    [
        (("tiny",), "--model tiny --precision fp16 --target cpu"),
        (("flux",), "--model flux --precision fp8 (where the GPU is; RTX 30 cards and the A100 take bf16)"),
        (("flux", "bf16"), "--model flux --precision bf16 (where the GPU is; RTX 30 cards and the A100 take bf16)"),
        (("flux", None, "sm90"), "--model flux --precision fp8 --target sm90"),
        (("flux", None, "sm80"), "--model flux --precision bf16 --target sm80"),
        (("flux", None, "cpu"), "--model flux --precision fp16 --target cpu"),
    ],
)
def test_a_model_of_true_size_is_built_for_a_gpu(wanted: tuple[str | None, ...], command: str, tmp_path: Path) -> None:
    with pytest.raises(
        BundleNotFoundError, match=re.escape(f"to make it, run: python -m export.build {command}") + "$"
    ):
        locate(*wanted, roots=[tmp_path])  # type: ignore[arg-type]


def test_says_that_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="available: none"):
        locate("tiny", roots=[tmp_path])


def test_the_environment_comes_before_the_package(roots: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, os.pathsep.join(map(str, roots)))
    assert default_roots() == (*roots, BUILT_IN)
    assert locate("tiny") == roots[0] / "tiny-fp32-cpu"
    monkeypatch.delenv(ENVIRONMENT)
    assert default_roots() == (BUILT_IN,)


def test_names() -> None:
    name = parse_name("flux-dev-bf16-sm120")
    assert name == BundleName("flux-dev", "bf16", "sm120")
    assert str(name) == "flux-dev-bf16-sm120"
    assert parse_name("notes") is None
    assert parse_name("tiny-fp32") is None
    assert "--model flux-dev --precision bf16 --target sm120" in rebuild_hint("flux-dev-bf16-sm120")
    assert rebuild_hint("whatever").endswith("python -m export.build")
