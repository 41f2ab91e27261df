"""One transformer block as an ONNX file in any precision: what TensorRT must take, made in milliseconds."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from engines.schema import ShapeRange
from export.tensorrt.flavours import Toolkit, installed, load
from export.tensorrt.targets import RTX

WIDTH = 64
LINEARS = 4
PROFILE = {"x": ShapeRange([1, 4, WIDTH], [1, 16, WIDTH], [2, 64, WIDTH])}

_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}
_NUMPY = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
}


def rtx() -> Toolkit:
    """TensorRT for RTX; the test is skipped where its wheels do not exist (they do for Linux on x86-64)."""
    if RTX not in installed():
        pytest.skip("TensorRT for RTX is not installed here")
    return load(RTX)


def write_block(path: Path, precision: str, heads: int = 2, high: tuple[str, ...] = (), external: bool = False) -> Path:
    """x [batch, tokens, WIDTH] float32 -> y the same: norm, attention with its four linears, residual.

    heads: WIDTH / heads is the head's size; high: linears ("q", "k", "v", "out") that fp8 leaves in bfloat16;
    external: weights in a file beside the model.
    """
    block = _Block(precision, high)
    block.node("Cast", ["x"], "h", to=block.dtype)
    block.constant("scale", np.ones(WIDTH), block.dtype)
    block.node("RMSNormalization", ["h", "scale"], "normed", axis=-1)
    parts = [block.linear("normed", name) for name in ("q", "k", "v")]
    block.node("Attention", parts, "attended", q_num_heads=heads, kv_num_heads=heads)
    block.node("Add", ["h", block.linear("attended", "out")], "sum")
    block.node("Cast", ["sum"], "y", to=TensorProto.FLOAT)
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "tokens", WIDTH]) for n in "xy"]
    graph = helper.make_graph(block.nodes, "block", ports[:1], ports[1:], block.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    data = f"{path.stem}.data" if external else None
    onnx.save(model, path, save_as_external_data=external, location=data, size_threshold=0)
    return path


class _Block:
    def __init__(self, precision: str, high: tuple[str, ...]) -> None:
        self.fp8, self.high = precision == "fp8", high
        self.dtype = _TYPES.get(precision, TensorProto.BFLOAT16)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}_node", **attributes))
        return output

    def constant(self, name: str, values: NDArray[np.float64] | float, dtype: int) -> str:
        array = np.asarray(values).astype(_NUMPY[dtype])
        self.initializers.append(helper.make_tensor(name, dtype, array.shape, array.tobytes(), raw=True))
        return name

    def linear(self, x: str, name: str) -> str:
        """``x W^T`` with W [out, in]; in fp8 as pairs of quantise and dequantise, a scale a row and one of ``x``."""
        weight = self._rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
        if self.fp8 and name not in self.high:
            scales = np.abs(weight).max(axis=1) / 448
            self.constant(f"{name}.weight", weight / scales[:, None], TensorProto.FLOAT8E4M3FN)
            self.constant(f"{name}.weight_scale", scales, self.dtype)
            self.constant(f"{name}.input_scale", 0.01, self.dtype)
            self.node("DequantizeLinear", [f"{name}.weight", f"{name}.weight_scale"], f"{name}.w", axis=0)
            eight = self.node(
                "QuantizeLinear", [x, f"{name}.input_scale"], f"{name}.x8", output_dtype=TensorProto.FLOAT8E4M3FN
            )
            x = self.node("DequantizeLinear", [eight, f"{name}.input_scale"], f"{name}.x")
        else:
            self.constant(f"{name}.w", weight, self.dtype)
        turned = self.node("Transpose", [f"{name}.w"], f"{name}.wt", perm=[1, 0])
        return self.node("MatMul", [x, turned], f"{name}.y")
