"""Plans are rejected where anything that they depend on differs, and the message says what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.bundle import Bundle
from engines.errors import StaleBundleError
from engines.machine import Machine
from engines.schema import Manifest
from engines.staleness import compare, onnx_digests, require_fresh
from engines.trust import sealed
from engines.writer import write_bundle
from tests.runtime import small_bundle, small_plans

HERE = Machine(("sm89",), {"tensorrt-rtx": "1.7.1.116"})


def _plans(folder: Path, **changes: Any) -> Bundle:
    return small_plans.build(folder / "tiny-fp16-sm89", finish=sealed, **changes)


def _source(folder: Path, **changes: Any) -> Bundle:
    """The ONNX bundle beside the plans."""
    return small_bundle.build(folder / "tiny-fp16-onnx", precision="fp16", target="onnx", **changes)


@pytest.fixture(autouse=True)
def _own_key(keys: Path) -> None:
    """Every test has its own key."""


def test_fresh_plans(tmp_path: Path) -> None:
    source = _source(tmp_path)
    bundle = _plans(tmp_path, onnx=onnx_digests(source.manifest))
    assert compare(bundle, HERE) == compare(bundle, HERE).__class__((), ())
    assert require_fresh(bundle, HERE).notes == ()


def test_a_bundle_for_the_cpu_has_nothing_to_compare(tmp_path: Path) -> None:
    bundle = small_bundle.build(tmp_path / "tiny-fp32-cpu")
    assert require_fresh(bundle, HERE).notes == ()


def test_what_cannot_be_asked_is_noted_and_does_not_count(tmp_path: Path) -> None:
    notes = require_fresh(_plans(tmp_path), Machine((), {})).notes
    assert notes == (
        "TensorRT is not installed: tensorrt-rtx 1.7.1.116 was not compared",
        "there is no GPU: sm89 was not compared",
        "there is no tiny-fp16-onnx beside it: its ONNX was not compared",
    )


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (Machine(("sm89",), {"tensorrt-rtx": "1.8.0.1"}), "built with tensorrt-rtx 1.7.1.116, 1.8.0.1 is installed"),
        (
            Machine(("sm89",), {"tensorrt": "11.4.0.3"}),
            "built with tensorrt-rtx 1.7.1.116, which cannot be read by tensorrt 11.4.0.3",
        ),
        (Machine(("sm90", "sm90"), HERE.flavours), "built for sm89, the GPU is sm90"),
        (Machine(("sm120",), HERE.flavours), "built for sm89, the GPU is sm120"),
    ],
)
def test_another_machine(tmp_path: Path, machine: Machine, message: str) -> None:
    with pytest.raises(StaleBundleError) as caught:
        require_fresh(_plans(tmp_path), machine)
    assert message in str(caught.value)
    assert "python -m export.build --model tiny --precision fp16 --target sm89" in str(caught.value)


def test_one_fitting_gpu_of_several_is_enough(tmp_path: Path) -> None:
    assert not compare(_plans(tmp_path), Machine(("sm90", "sm89"), HERE.flavours)).differences


def test_other_onnx_beside_it(tmp_path: Path) -> None:
    source = _source(tmp_path)
    digests = {**onnx_digests(source.manifest), "backbone": "a" * 64, "t5": "b" * 64}
    (difference,) = compare(_plans(tmp_path, onnx=digests), HERE).differences
    assert difference == "built from another source than tiny-fp16-onnx: the ONNX of backbone, the ONNX of t5"


def test_with_the_source_beside_it_the_plans_are_built_again_from_that(tmp_path: Path) -> None:
    source = _source(tmp_path)
    bundle = _plans(tmp_path)
    with pytest.raises(StaleBundleError) as caught:
        require_fresh(bundle, HERE)
    assert str(caught.value).endswith(f"run: python -m export.engine {source.root} --target sm89 --out {bundle.root}")


def test_another_adapter_or_base_beside_it(tmp_path: Path) -> None:
    source = _source(tmp_path, parents={"base": "0" * 64, "adapter": "9" * 64})
    (difference,) = compare(_plans(tmp_path, onnx=onnx_digests(source.manifest)), HERE).differences
    assert difference == "built from another source than tiny-fp16-onnx: the adapter"


def test_data_files_count(tmp_path: Path) -> None:
    """A network's digest is of its weights as well, where these lie in a file of their own."""
    source = _source(tmp_path)
    networks = dict(source.manifest.networks)
    networks["clip"] = msgspec.structs.replace(networks["clip"], data=["clip.safetensors"])
    changed: Manifest = msgspec.structs.replace(source.manifest, networks=networks)
    files: dict[str, Path | bytes] = {entry.path: source.root / entry.path for entry in source.manifest.files}
    again = write_bundle(tmp_path / "other", changed, {**files, "clip.safetensors": b"weights"})
    before, after = onnx_digests(source.manifest), onnx_digests(again.manifest)
    assert {name for name in before if before[name] != after[name]} == {"clip"}


def test_a_damaged_source_is_noted(tmp_path: Path) -> None:
    source = _source(tmp_path)
    (source.root / "manifest.json").write_text("{}")
    findings = compare(_plans(tmp_path, onnx=onnx_digests(source.manifest)), HERE)
    assert not findings.differences
    assert "tiny-fp16-onnx is not whole" in findings.notes[0]


def test_all_that_differs_is_said_at_once(tmp_path: Path) -> None:
    bundle = small_plans.build(tmp_path / "tiny-fp16-sm89")
    differences = compare(bundle, Machine(("sm90",), {"tensorrt": "11.4.0.3"})).differences
    assert len(differences) == 3
    assert "no seal" in differences[0]
