"""A bfloat16 graph for a runtime that has no bfloat16 arithmetic: computed in float32, every result rounded.

That is how bfloat16 hardware works: products are accumulated in float32, what an operator hands on is rounded.
"""

from __future__ import annotations

import onnx_ir as ir

from export.errors import ExportError
from export.passes.precision.widen import widen

_FLOAT, _BFLOAT16 = ir.DataType.FLOAT, ir.DataType.BFLOAT16

_MOVES = frozenset(
    {
        *("Concat", "Expand", "Gather", "GatherElements", "GatherND", "Identity", "Max", "Min", "Neg", "Pad"),
        *("Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
    }
)
"""Operators whose results are inputs unaltered (or their negatives): there is nothing to round."""

_TYPE_ATTRIBUTES = {"Cast": "to", "DequantizeLinear": "output_dtype"}


def emulate_bfloat16(model: ir.Model) -> int:
    """Rewrite the graph in place. Ports must not be bfloat16; weights keep their type and bytes, and are widened.

    Returns how many results are rounded. Raises ExportError for bfloat16 ports and subgraphs.
    """
    graph = model.graph
    if any(value.dtype == _BFLOAT16 for value in (*graph.inputs, *graph.outputs)):
        raise ExportError("a graph with bfloat16 ports cannot be emulated: its ports must be float32")
    nodes = list(graph)
    if len(nodes) != sum(1 for _ in graph.all_nodes()):
        raise ExportError("a graph with subgraphs cannot be emulated in bfloat16")
    for value in list(graph.initializers.values()):
        if value.dtype == _BFLOAT16:
            widen(graph, value, graph[0])
    return sum(_emulate(graph, node) for node in nodes)


def _emulate(graph: ir.Graph, node: ir.Node) -> int:
    """Make one node compute in float32. Returns how many of its results are rounded."""
    attribute = _TYPE_ATTRIBUTES.get(node.op_type)
    if attribute is not None and node.attributes.get_int(attribute, 0) == _BFLOAT16:
        node.attributes[attribute] = ir.AttrInt64(attribute, int(_FLOAT))
    constant = node.attributes.get_tensor("value", None) if node.op_type in ("Constant", "ConstantOfShape") else None
    if constant is not None and constant.dtype == _BFLOAT16:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(constant.numpy().astype("float32")))
    rounded = 0
    for output in node.outputs:
        if output.dtype == _BFLOAT16:
            output.dtype = _FLOAT
            if node.op_type not in _MOVES and constant is None:
                _round(graph, node, output)
                rounded += 1
    return rounded


def _round(graph: ir.Graph, node: ir.Node, exact: ir.Value) -> None:
    """Let every reader of a result read what bfloat16 leaves of it."""
    narrow = ir.node("Cast", [exact], {"to": int(_BFLOAT16)})
    wide = ir.node("Cast", [narrow.outputs[0]], {"to": int(_FLOAT)})
    for cast, kind in ((narrow, _BFLOAT16), (wide, _FLOAT)):
        cast.outputs[0].name = f"{exact.name}/{kind.name.lower()}"
        cast.outputs[0].shape, cast.outputs[0].type = exact.shape, ir.TensorType(kind)
    exact.replace_all_uses_with(wide.outputs[0])
    narrow.replace_input_with(0, exact)
    graph.insert_after(node, [narrow, wide])
