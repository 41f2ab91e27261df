"""Quantise what attention multiplies: pairs around query, key and value of every Attention node.

The probabilities have no place in ONNX where a pair could stand. TensorRT takes their scale after parsing
(``IAttention.normalization_quantize_scale`` and ``normalization_quantize_to_type``); without it, it computes the
attention in the graph's own type, and the pairs cost precision for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from export.errors import ExportError
from export.fp8.attention import SIDES
from export.fp8.numbers import activation_scale

OPSET = 23
"""The first opset with an Attention operator."""


def quantize_attention(model: ir.Model, amax: Sequence[tuple[float, float, float]]) -> int:
    """Put query, key and value of each Attention node through FP8, in place; returns the number of nodes.

    amax: greatest magnitudes of (query, key, value) by node, in graph order. Scales are stored in the type the node
    computes in. Raises ExportError, with the graph unchanged, where the numbers of nodes and of ``amax`` differ, an
    input is missing or its type unknown, or there is no such node.
    """
    nodes = [node for node in model.graph if node.op_type == "Attention" and node.domain == ""]
    if not nodes:
        raise ExportError(
            f"fp8 attention needs Attention nodes, which ONNX has from opset {OPSET} on; the graph has none"
        )
    if len(nodes) != len(amax):
        raise ExportError(
            f"the calibration knows {len(amax)} attentions, the graph has {len(nodes)}; measure them anew: "
            "python -m export.calibrate --model NAME --out FILE"
        )
    for node in nodes:
        for value in node.inputs[: len(SIDES)]:
            if value is None or value.dtype is None:
                raise ExportError(f"fp8 attention: an input of {node.name} is missing or of unknown type")
    for number, (node, bounds) in enumerate(zip(nodes, amax, strict=True)):
        for index, (side, bound) in enumerate(zip(SIDES, bounds, strict=True)):
            _quantise(model, node, index, f"attention.{number}.{side}", activation_scale(bound))
    return len(nodes)


def _quantise(model: ir.Model, node: ir.Node, index: int, name: str, scale: float) -> None:
    source = node.inputs[index]
    if source is None or source.dtype is None:
        return
    compute = source.dtype
    constant = ir.Value(name=f"{name}_scale", type=ir.TensorType(compute), shape=ir.Shape(()))
    constant.const_value = ir.Tensor(np.array(scale, dtype=compute.numpy()), dtype=compute, name=constant.name)
    model.graph.initializers.add(constant)
    attributes = {"output_dtype": int(ir.DataType.FLOAT8E4M3FN)}
    quantise = ir.node("QuantizeLinear", [source, constant], attributes, name=f"{name}_quantise")
    dequantise = ir.node("DequantizeLinear", [quantise.outputs[0], constant], name=f"{name}_dequantise")
    for value, suffix, dtype in (
        (quantise.outputs[0], "quantised", ir.DataType.FLOAT8E4M3FN),
        (dequantise.outputs[0], "dequantised", compute),
    ):
        value.name, value.type, value.shape = f"{name}_{suffix}", ir.TensorType(dtype), source.shape
    model.graph.insert_before(node, [quantise, dequantise])
    node.replace_input_with(index, dequantise.outputs[0])
