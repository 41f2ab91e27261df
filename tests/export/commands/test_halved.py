"""``export.build --precision fp16 --target cpu``: half the file, float32's arithmetic, float32's image."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from engines.bundle import open_bundle
from export.assembling.parity import HALVED_LIMITS
from export.build import main
from export.passes.precision.narrow_weights import LEAST
from runtime.pipeline import Pipeline
from tests.export.conftest import Built, Sources, arguments

STEP = 2
"""Of 255: what rounding the matrices may move a pixel by."""

LOOKED_UP = {"clip": 1, "t5": 1}
"""Tables of tokens by network, whose rows are widened at every call."""


@pytest.fixture(scope="module")
def halved(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small sources in fp16 for a CPU."""
    root = tmp_path_factory.mktemp("halved")
    bundle = root / "tiny-fp16-cpu"
    options = arguments(built.sources, bundle, root / "work")
    assert main([*options, "--model", "tiny", "--precision", "fp16", "--target", "cpu"]) == 0
    return bundle


def test_what_is_computed_in_and_held_to(built: Built, halved: Path) -> None:
    manifest, whole = open_bundle(halved).manifest, open_bundle(built.bundle).manifest
    assert (manifest.precision, manifest.target) == ("fp16", "cpu")
    assert {network.compute for network in manifest.networks.values()} == {"float32"}
    assert manifest.tools == whole.tools, "opset included"
    assert manifest.networks == whole.networks, "files and ports"
    for result in manifest.parity:
        assert 1e-6 < result.relative_error <= result.limit == HALVED_LIMITS[result.network]


def test_every_large_matrix_takes_half(built: Built, halved: Path) -> None:
    for name in open_bundle(halved).manifest.networks:
        whole, half = (
            {t.name: t for t in onnx.load(folder / f"{name}.onnx").graph.initializer}
            for folder in (built.bundle, halved)
        )
        assert set(half) == set(whole)
        for key, tensor in half.items():
            assert list(tensor.dims) == list(whole[key].dims), "transposed alike"
            large = len(tensor.dims) >= 2 and math.prod(tensor.dims) >= LEAST and "weight" in key
            kept = "position_embedding" in key or "relative_attention_bias" in key
            if large and not kept:
                assert tensor.data_type == onnx.TensorProto.FLOAT16, key
                assert 2 * len(tensor.raw_data) == len(whole[key].raw_data)
            else:
                assert tensor == whole[key], key


def _optimised(model: Path, folder: Path) -> onnx.GraphProto:
    """The graph that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx").graph


def _kinds(graph: onnx.GraphProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.node)


def _in_float16(graph: onnx.GraphProto) -> int:
    return sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)


def test_onnx_runtime_runs_the_graph_of_fp32(built: Built, halved: Path, tmp_path: Path) -> None:
    """It widens what is constant when the session is made: what is left are the casts of looked-up rows."""
    for name in open_bundle(halved).manifest.networks:
        looked_up = LOOKED_UP.get(name, 0)
        whole, half = (_optimised(folder / f"{name}.onnx", tmp_path) for folder in (built.bundle, halved))
        assert _kinds(half) - _kinds(whole) == Counter({"Cast": looked_up}), name
        assert not _kinds(whole) - _kinds(half), name
        assert _in_float16(half) == looked_up < _in_float16(onnx.load(halved / f"{name}.onnx").graph), name


def test_the_images_are_those_of_fp32(built: Built, halved: Path) -> None:
    with Pipeline.open(built.bundle, threads=1) as whole, Pipeline.open(halved, threads=1) as half:
        for seed in range(3):
            images = [
                np.asarray(pipeline.generate("a woman astronaut", seed=seed).images[0]).astype(int)
                for pipeline in (whole, half)
            ]
            assert images[0].std() > 5, "a picture"
            assert np.abs(images[0] - images[1]).max() <= STEP


@pytest.mark.parametrize(("precision", "stored"), [("fp32", "float32"), ("fp16", "float16")])
def test_the_command_says_what_is_stored(
    precision: str, stored: str, sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = arguments(sources, tmp_path / "out", tmp_path / "work")
    assert main([*options, "--model", "tiny", "--precision", precision, "--target", "cpu", "--dry-run"]) == 0
    row = next(line for line in capsys.readouterr().err.splitlines() if "backbone" in line)
    assert [word for word in row.split() if word.startswith("float")] == ["float32", stored]
