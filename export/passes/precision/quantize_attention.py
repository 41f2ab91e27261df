"""Quantise what attention multiplies: pairs around query, key and value of every Attention node.

The probabilities have no place in ONNX where a pair could stand. TensorRT takes their scale after parsing
(``IAttention.normalization_quantize_scale`` and ``normalization_quantize_to_type``); without it, it computes the
attention in the graph's own type, and the pairs cost precision for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from export.errors import ExportError
from export.fp8.attention import SIDES
from export.fp8.numbers import activation_scale
from export.passes.precision.quantize_fp8 import insert_pair

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
    if source is not None and source.dtype is not None:
        names = (f"{name}_scale", f"{name}_quantise", f"{name}_dequantise")
        node.replace_input_with(index, insert_pair(model, node, source, source.dtype, scale, names))
