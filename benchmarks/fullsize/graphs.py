"""What an ONNX file holds: nodes, weights, and how much of it is FP8. Weights are not read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_PASSES_WEIGHTS_ON = {"DequantizeLinear", "Transpose", "Cast", "Reshape"}


@dataclass(frozen=True)
class GraphFacts:
    """Counts of one graph.

    nodes: operators; weights: elements of all initializers; fp8_weights: those stored as FLOAT8E4M3FN; linears:
    MatMul and Gemm that multiply with a weight (attention's own products do not); fp8_linears: those whose weight and
    input are both FP8; graph_bytes: the ``.onnx`` file itself; data_bytes: the files of external data beside it.
    """

    nodes: int
    weights: int
    fp8_weights: int
    linears: int
    fp8_linears: int
    graph_bytes: int
    data_bytes: int

    @property
    def fp8_linear_share(self) -> float:
        """Share of the linears that are FP8."""
        return self.fp8_linears / self.linears if self.linears else 0.0

    @property
    def fp8_weight_share(self) -> float:
        """Share of the weights' elements that are FP8."""
        return self.fp8_weights / self.weights if self.weights else 0.0


def graph_facts(path: Path) -> GraphFacts:
    """Count what the ONNX file ``path`` holds."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    eight_bit = {name for name, t in tensors.items() if t.data_type == onnx.TensorProto.FLOAT8E4M3FN}
    made_by = {output: node for node in graph.node for output in node.output}
    linears = fp8_linears = 0
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = _origin(node.input[1], made_by)
        if weight in tensors:
            linears += 1
            quantised = node.input[0] in made_by and made_by[node.input[0]].op_type == "DequantizeLinear"
            fp8_linears += weight in eight_bit and quantised
    files = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
    data = [path.parent / file for file in files]
    return GraphFacts(
        nodes=len(graph.node),
        weights=sum(math.prod(t.dims) for t in graph.initializer),
        fp8_weights=sum(math.prod(tensors[name].dims) for name in eight_bit),
        linears=linears,
        fp8_linears=fp8_linears,
        graph_bytes=path.stat().st_size,
        data_bytes=sum(file.stat().st_size for file in data if file.is_file()),
    )


def _origin(name: str, made_by: dict[str, onnx.NodeProto]) -> str:
    """What a value is made of, through the nodes that only carry a weight on."""
    while name in made_by and made_by[name].op_type in _PASSES_WEIGHTS_ON:
        name = made_by[name].input[0]
    return name
