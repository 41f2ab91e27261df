"""One network in ONNX Runtime: weights from memory, and no other file than those that were handed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.schema import Network, Port
from runtime.errors import BackendError
from runtime.hosts.onnx_network import OnnxRuntimeNetwork

SIZE = 8
WEIGHTS = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32)
FILE = b"header.." + WEIGHTS.tobytes()
X = np.ones((2, SIZE), dtype=np.float32)


def _external(name: str, location: str, kind: int, offset: int, length: int, shape: list[int]) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": str(offset), "length": str(length)}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _model(nodes: list[Any], tensors: list[onnx.TensorProto]) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", SIZE]) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def _linear(location: str) -> bytes:
    weight = _external("w", location, TensorProto.FLOAT, 8, WEIGHTS.nbytes, [SIZE, SIZE])
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])


def _spec(file: str = "linear.onnx", *data: str) -> Network:
    x, y = (Port(name, "float32", ["batch", SIZE]) for name in "xy")
    return Network(file, [x], [y], data=data)


def _load(model: bytes, data: dict[str, bytes], spec: Network | None = None) -> OnnxRuntimeNetwork:
    views = {path: memoryview(content) for path, content in data.items()}
    return OnnxRuntimeNetwork("linear", model, spec or _spec(), 1, views)


@pytest.mark.parametrize("path", ["linear.weights", "networks/linear.weights"])
def test_weights_from_memory(path: str) -> None:
    """The model calls the file by its name; the bundle, by its path."""
    network = _load(_linear("linear.weights"), {path: FILE})
    np.testing.assert_array_equal(network.run({"x": X})["y"], X @ WEIGHTS)


def test_the_memory_is_not_needed_afterwards() -> None:
    data = bytearray(FILE)
    network = OnnxRuntimeNetwork("linear", _linear("linear.weights"), _spec(), 1, {"linear.weights": memoryview(data)})
    data[:] = bytes(len(data))
    np.testing.assert_array_equal(network.run({"x": X})["y"], X @ WEIGHTS)


@pytest.mark.parametrize("given", [{}, {"other": FILE}], ids=["no data", "other data"])
@pytest.mark.parametrize("location", ["linear.weights", "sub/../linear.weights", "../linear.weights", "absolute"])
def test_no_file_is_opened_by_name(
    location: str, given: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "sub").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "here"):
        (folder / "linear.weights").write_bytes(FILE)
    monkeypatch.chdir(tmp_path / "here")
    name = str(tmp_path / "linear.weights") if location == "absolute" else location
    with pytest.raises(BackendError, match=r"cannot load the linear network 'linear\.onnx'"):
        _load(_linear(name), given)


def test_data_that_is_too_short() -> None:
    with pytest.raises(BackendError, match="out of bounds"):
        _load(_linear("linear.weights"), {"linear.weights": FILE[:100]})


def test_fp8_weights_run() -> None:
    """E4M3 with a scale a row, as bundles of precision fp8 hold them: exact for what E4M3 can hold."""
    codes = np.array([0x38, 0x40, 0x30, 0xB8, 0xC0, 0x00, 0x44, 0xBC], dtype=np.uint8)
    values = np.array([1.0, 2.0, 0.5, -1.0, -2.0, 0.0, 3.0, -1.5], dtype=np.float32)
    scales = np.arange(1, SIZE + 1, dtype=np.float32)
    rows = np.stack([np.roll(codes, i) for i in range(SIZE)])
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["wide"], axis=0),
        helper.make_node("Transpose", ["wide"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    tensors = [
        _external("w", "linear.weights", TensorProto.FLOAT8E4M3FN, 0, rows.nbytes, [SIZE, SIZE]),
        helper.make_tensor("w_scale", TensorProto.FLOAT, [SIZE], scales),
    ]
    network = _load(_model(nodes, tensors), {"linear.weights": rows.tobytes()})
    weights = np.stack([np.roll(values, i) for i in range(SIZE)]) * scales[:, None]
    x = np.arange(2 * SIZE, dtype=np.float32).reshape(2, SIZE)
    np.testing.assert_allclose(network.run({"x": x})["y"], x @ weights.T, rtol=1e-6)
