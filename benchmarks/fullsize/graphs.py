"""What an ONNX file holds: nodes, weights, and how much of it is FP8. Weights are not read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

GRAPH_FACTS = ("nodes", "weights", "linears", "fp8_linear_share", "fp8_weight_share")
_PASSES_WEIGHTS_ON = {"DequantizeLinear", "Transpose", "Cast", "Reshape"}


def graph_facts(path: Path) -> Mapping[str, float]:
    """GRAPH_FACTS of an ONNX file.

    nodes: operators; weights: elements of all initializers, fp8_weight_share of them stored as FLOAT8E4M3FN; linears:
    MatMul and Gemm that multiply with a weight (attention's own products do not), fp8_linear_share of them with both
    weight and input in FP8.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    elements = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    eight_bit = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT8E4M3FN}
    made_by = {output: node for node in graph.node for output in node.output}
    linears = fp8_linears = 0
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = _origin(node.input[1], made_by)
        if weight in elements:
            linears += 1
            quantised = node.input[0] in made_by and made_by[node.input[0]].op_type == "DequantizeLinear"
            fp8_linears += weight in eight_bit and quantised
    weights, fp8_weights = sum(elements.values()), sum(elements[name] for name in eight_bit)
    shares = (fp8_linears / max(linears, 1), fp8_weights / max(weights, 1))
    return dict(zip(GRAPH_FACTS, (len(graph.node), weights, linears, *shares), strict=True))


def _origin(name: str, made_by: Mapping[str, onnx.NodeProto]) -> str:
    """What a value is made of, through the nodes that only carry a weight on."""
    while name in made_by and made_by[name].op_type in _PASSES_WEIGHTS_ON:
        name = made_by[name].input[0]
    return name
