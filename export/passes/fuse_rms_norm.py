"""One RMSNormalization node (opset 23) where the trace spelled the norm out."""

from __future__ import annotations

import onnx_ir as ir

from export.passes.match import maker, number, only_user, other_input

_FLOAT = ir.DataType.FLOAT


def fuse_rms_norm(model: ir.Model) -> int:
    """Replace ``weight * cast(x * rsqrt(mean(x^2) + epsilon))`` over the last axis by one node. Returns how many.

    The statistics must be float32, as they are in the node; x and the result have the weight's type.
    """
    graph = model.graph
    count = 0
    for node in list(graph):
        if node.op_type == "ReduceMean":
            count += _fuse(graph, node)
    return count


def _fuse(graph: ir.Graph, mean: ir.Node) -> bool:
    squared = maker(mean.inputs[0], "Pow")
    add = only_user(mean, "Add")
    root = only_user(add, "Sqrt")
    inverse = only_user(root, "Reciprocal")
    normalise = only_user(inverse, "Mul")
    if squared is None or add is None or inverse is None or normalise is None or not _is_last_axis(mean):
        return False
    wide = squared.inputs[0]
    epsilon = number(other_input(add, mean.outputs[0]))
    if wide is None or wide.dtype != _FLOAT or number(squared.inputs[1]) != 2.0 or epsilon is None:
        return False
    if other_input(normalise, inverse.outputs[0]) is not wide:
        return False
    narrowed = only_user(normalise, "Cast") or normalise
    scale = only_user(narrowed, "Mul")
    weight = other_input(scale, narrowed.outputs[0]) if scale is not None else None
    widened = maker(wide, "Cast")
    x = widened.inputs[0] if widened is not None else wide
    if scale is None or weight is None or x is None or x.dtype is None or x.dtype != weight.dtype:
        return False
    if weight.shape is None or weight.shape.rank() != 1 or scale.outputs[0].dtype != x.dtype:
        return False
    _replace(graph, scale, x, weight, epsilon)
    return True


def _replace(graph: ir.Graph, scale: ir.Node, x: ir.Value, weight: ir.Value, epsilon: float) -> None:
    old = scale.outputs[0]
    attributes = {"axis": -1, "epsilon": epsilon, "stash_type": int(_FLOAT)}
    node = ir.node("RMSNormalization", [x, weight], attributes, name=scale.name)
    new = node.outputs[0]
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, scale, [scale], [node], [old], [new])


def _is_last_axis(mean: ir.Node) -> bool:
    axes = mean.inputs[1] if len(mean.inputs) > 1 else None
    constant = ir.convenience.get_const_tensor(axes) if axes is not None else None
    return constant is not None and constant.numpy().tolist() == [-1] and bool(mean.attributes.get_int("keepdims", 1))
