"""What the passes ask of a graph: who makes a value, who alone reads it, which number it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def maker(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node that makes ``value``, if it is of that kind."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == kind else None


def only_user(node: ir.Node | None, kind: str) -> ir.Node | None:
    """The one node that reads what ``node`` makes, if it is of that kind."""
    uses = list(node.outputs[0].uses()) if node is not None else []
    return uses[0].node if len(uses) == 1 and uses[0].node.op_type == kind else None


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The other input of a node with two."""
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def number(value: ir.Value | None) -> float | None:
    """The one number that a constant holds."""
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    return constant.numpy().reshape(()).item() if constant is not None and constant.size == 1 else None


def constant(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """The initializer of that name, made of ``array`` when first asked for."""
    initializers = model.graph.initializers
    if name not in initializers:
        tensor = ir.tensor(array, name=name)
        shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
        initializers.add(ir.Value(name=name, const_value=tensor, shape=shape, type=kind))
    return initializers[name]
