"""Rotary embedding's (a, b) -> (-b, a) as one reversal of pairs; the sign goes into the sine, once for all blocks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.errors import ExportError
from export.passes.match import constant, maker, number, only_user


def swap_pairs(model: ir.Model) -> int:
    """Replace ``stack(-x[..., 1::2], x[..., ::2]) * sin`` by ``reverse_pairs(x) * (sin * [-1, 1, ...])``.

    ``(-b) * s`` and ``b * (-s)`` are the same number to the bit. Returns how many products were replaced.
    """
    signed: dict[ir.Value, ir.Value] = {}
    return sum(_replace(model, node, signed) for node in list(model.graph) if node.op_type == "Neg")


def _replace(model: ir.Model, negate: ir.Node, signed: dict[ir.Value, ir.Value]) -> bool:
    second = _half(negate.inputs[0], 1)
    pairs, stacked = second, only_user(only_user(negate, "Unsqueeze"), "Concat")
    if pairs is None or stacked is None or len(stacked.inputs) != 2:
        return False
    first = maker(stacked.inputs[1], "Unsqueeze")
    back = only_user(stacked, "Reshape")
    product = only_user(back, "Mul")
    if first is None or back is None or product is None or _half(first.inputs[0], 0) is not pairs:
        return False
    sine = product.inputs[1] if product.inputs[0] is back.outputs[0] else product.inputs[0]
    old = product.outputs[0]
    size = back.outputs[0].shape[-1] if back.outputs[0].shape is not None else None
    if sine is None or not isinstance(size, int) or size % 2 or old.type is None:
        return False
    if sine not in signed:
        signed[sine] = _signed(model, sine, size)
    last = [constant(model, "last_axis", np.array([-1]))] * 2
    reverse = ir.node("Slice", [pairs, last[0], constant(model, "before_the_first", np.array([_BEFORE])), *last])
    joined = ir.node("Reshape", [reverse.outputs[0], back.inputs[1]])
    again = ir.node("Mul", [joined.outputs[0], signed[sine]], name=product.name)
    for node, shape in ((reverse, pairs.shape), (joined, back.outputs[0].shape), (again, old.shape)):
        node.outputs[0].type, node.outputs[0].shape = old.type, shape
        product.prepend(node)
    old.replace_all_uses_with(again.outputs[0])
    model.graph.remove(product, safe=True)
    return True


_BEFORE = int(np.iinfo(np.int64).min)
"""Where a slice that goes backwards ends to have the first element too."""


def _half(value: ir.Value | None, index: int) -> ir.Value | None:
    """The [..., 2] tensor of which ``value`` is the element ``index`` of every pair."""
    squeeze = maker(value, "Squeeze")
    cut = maker(squeeze.inputs[0], "Slice") if squeeze is not None else None
    if cut is None or len(cut.inputs) < 4 or [number(v) for v in cut.inputs[1:4]] != [index, index + 1, -1]:
        return None
    view = maker(cut.inputs[0], "Reshape")
    return view.outputs[0] if view is not None else None


def _signed(model: ir.Model, sine: ir.Value, size: int) -> ir.Value:
    if sine.type is None or sine.dtype is None:
        raise ExportError(f"the type of {sine.name} is unknown; export the network again")
    signs = np.tile(np.array([-1, 1]), size // 2).astype(sine.dtype.numpy())
    node = ir.node("Mul", [sine, constant(model, f"pair_signs_{size}", signs)])
    node.outputs[0].type, node.outputs[0].shape = sine.type, sine.shape
    maker = sine.producer()
    if maker is None:
        raise ExportError(f"{sine.name} is not computed in the graph; export the network again")
    maker.append(node)
    return node.outputs[0]
