"""Store linear weights as the CPU multiplies them, so that loading a model does not have to."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def transpose_weights(model: ir.Model) -> int:
    """Replace ``Transpose(weight)`` of a 2-D weight by the transposed weight, under the same name.

    Only weights that nothing else reads are changed. Needs attached weights. Returns how many were.
    """
    graph = model.graph
    count = 0
    for node in list(graph):
        if node.op_type != "Transpose":
            continue
        weight, output = node.inputs[0], node.outputs[0]
        if weight is None or not weight.is_initializer() or weight.const_value is None:
            continue
        array = weight.const_value.numpy()
        order = node.attributes.get_ints("perm", (1, 0))
        if array.ndim != 2 or tuple(order) != (1, 0) or len(list(weight.uses())) != 1 or output.is_graph_output():
            continue
        weight.const_value = ir.Tensor(np.ascontiguousarray(array.T), name=weight.name)
        weight.shape = ir.Shape(array.shape[::-1])
        output.replace_all_uses_with(weight)
        graph.remove(node, safe=True)
        count += 1
    return count
