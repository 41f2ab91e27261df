"""Model by precision by target, at small size through the whole command: built, opened, and held to torch.

One module a model runs these tests, so that the models can be tested side by side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.bundle import open_bundle
from engines.schema import NETWORKS
from export.build import main
from export.calibrate import main as calibrate
from export.tensorrt.build import Options, build_plan
from export.tensorrt.plans import network_profiles
from export.tensorrt.profiles import choose_shapes
from export.tensorrt.targets import TARGETS
from foundation.cli import run
from foundation.files import sha256_tree
from tests.export.pipelines import Sources, small_flux, small_qwen
from tests.export.tensorrt.graphs import rtx

SHAPES = ["--resolutions", "256x256,256x512", "--batch", "1-2"]
TEXT = {"flux": "512", "qwen": "1-64"}

ONNX_BUILDS = [("fp32", "cpu"), ("fp16", "cpu"), ("fp8", "cpu"), ("fp16", "onnx"), ("bf16", "onnx"), ("fp8", "onnx")]
PLAN_BUILDS = [("fp16", "sm120"), ("bf16", "sm89"), ("fp8", "sm89"), ("fp8", "sm120"), ("fp8", "rtx")]


@dataclass(frozen=True)
class Workshop:
    """Sources and a calibration of one small model, and the work folder that all of its builds share."""

    model: str
    sources: Sources
    calibration: Path
    root: Path

    def arguments(self, precision: str, target: str, *more: str) -> list[str]:
        options = ["--model", self.model, "--precision", precision, "--target", target]
        options += ["--base", str(self.sources.base), "--adapter", str(self.sources.adapter)]
        options += ["--workdir", str(self.root / "work"), "--out", str(self.out(precision, target))]
        if precision == "fp8":
            options += ["--calibration", str(self.calibration)]
        return [*options, *SHAPES, "--text-tokens", TEXT[self.model], *more]

    def out(self, precision: str, target: str) -> Path:
        return self.root / f"{self.model}-{precision}-{target}"


def make_workshop(model: str, root: Path) -> Workshop:
    """The small model's sources and its calibration, measured as a user would measure it."""
    sources = {"flux": small_flux, "qwen": small_qwen}[model](root)
    calibration = root / "calibration.json"
    options = ["--model", model, "--base", str(sources.base), "--adapter", str(sources.adapter), "--num", "2"]
    options += ["--size", "256x256", "--out", str(calibration), "--workdir", str(root / "calibrate")]
    assert calibrate(options) == 0
    return Workshop(model, sources, calibration, root)


def check(workshop: Workshop, precision: str, target: str, capsys: pytest.CaptureFixture[str]) -> Mapping[str, Any]:
    """Build, open what was built, and check what every bundle must hold to; returns the command's summary."""
    assert main([*workshop.arguments(precision, target), "--json"]) == 0
    summary: Mapping[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    manifest = open_bundle(workshop.out(precision, target)).manifest
    assert (manifest.architecture, manifest.precision, manifest.target) == (workshop.model, precision, target)
    assert set(manifest.networks) == set(NETWORKS[workshop.model])
    assert {result.network for result in manifest.parity} == set(manifest.networks)
    assert all(result.relative_error <= result.limit for result in manifest.parity)
    assert sum(result.network == "backbone" for result in manifest.parity) == 3
    assert (manifest.quantisation is not None) == (precision == "fp8")
    return summary


@pytest.mark.parametrize(("precision", "target"), ONNX_BUILDS)
def test_onnx_bundles(workshop: Workshop, precision: str, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(workshop, precision, target, capsys)
    out = workshop.out(precision, target)
    manifest = open_bundle(out).manifest
    for name, network in manifest.networks.items():
        assert bool(network.data) == (target == "onnx"), name
        graph = onnx.load(out / network.file, load_external_data=False).graph
        for values, ports in ((graph.input, network.inputs), (graph.output, network.outputs)):
            shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
            assert shapes == {port.name: list(port.shape) for port in ports}
        types = {t.data_type for t in graph.initializer}
        in_fp8 = {"conditioner", "backbone", "t5", "text"} if precision == "fp8" else set()
        assert (onnx.TensorProto.FLOAT8E4M3FN in types) == (name in in_fp8)
        operators = {node.op_type for node in graph.node}
        if target == "onnx" and name == "backbone":
            assert "Attention" in operators


@pytest.mark.parametrize(("precision", "target"), PLAN_BUILDS)
def test_plan_bundles(workshop: Workshop, precision: str, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = check(workshop, precision, target, capsys)
    manifest = open_bundle(workshop.out(precision, target)).manifest
    assert manifest.engine is not None
    assert {network.format for network in manifest.networks.values()} == {"plan"}
    assert set(manifest.engine.profiles) == set(manifest.networks) == set(summary["plans"])
    assert manifest.engine.compute_capabilities == (["sm120", "sm89"] if target == "rtx" else [target])
    assert manifest.engine.profiles["backbone"]["hidden_states"].max[:2] == [2, 512]


def test_the_same_build_gives_the_same_bytes(workshop: Workshop, tmp_path: Path) -> None:
    first = workshop.out("fp8", "onnx")
    if not first.exists():
        assert main(workshop.arguments("fp8", "onnx")) == 0
    again = ["--workdir", str(tmp_path / "work"), "--out", str(tmp_path / first.name)]
    assert main([*workshop.arguments("fp8", "onnx"), *again]) == 0
    assert sha256_tree(tmp_path / first.name) == sha256_tree(first)


def test_plans_do_not_depend_on_where_their_networks_lie(workshop: Workshop, tmp_path: Path) -> None:
    """The length of the path moves what TensorRT keeps in memory, and plans follow addresses."""
    out = workshop.out("bf16", "onnx")
    if not out.exists():
        assert main(workshop.arguments("bf16", "onnx")) == 0
    manifest = open_bundle(out).manifest
    shapes = choose_shapes(manifest.limits, "256x256", "1", TEXT[workshop.model].split("-")[-1])
    profile = network_profiles(manifest, shapes)["backbone"]
    toolkit, options = rtx(), Options(opt_level=0)
    digests = set()
    for length in (1, 9, 17, 25, 200):
        folder = tmp_path / ("p" * length)
        folder.mkdir()
        for file in (manifest.networks["backbone"].file, *manifest.networks["backbone"].data):
            (folder / file).symlink_to(out / file)
        onnx_file, plan = folder / manifest.networks["backbone"].file, folder / "backbone.plan"
        report = build_plan(onnx_file, plan, target=TARGETS["sm120"], profile=profile, toolkit=toolkit, options=options)
        digests.add(report.sha256)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("precision", "target", "message"),
    [
        ("fp8", "sm86", "--target sm86 cannot compute in fp8"),
        ("bf16", "cpu", "--precision bf16 cannot run on a CPU"),
        ("fp16", "sm90", "--target sm90 needs tensorrt"),
        ("fp16", "sm70", "--target sm70 is unknown; allowed: cpu, onnx, sm80"),
    ],
)
def test_what_cannot_be_built_is_refused_first(
    workshop: Workshop, precision: str, target: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--workdir", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert run(main, [*workshop.arguments(precision, target), *places]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
