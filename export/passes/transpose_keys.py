"""One transposition of the keys where the trace of attention spelled it out with shapes that it computed."""

from __future__ import annotations

import onnx_ir as ir

from export.passes.match import maker, number

_HEADS_FIRST = [0, 2, 1, 3]
_KEYS = [0, 2, 3, 1]


def transpose_keys(model: ir.Model) -> int:
    """Replace [B, T, H, D] -> [B, H, T, D] -> [B H, T, D] -> [B H, D, T] -> [B, H, D, T] by one Transpose.

    Returns how many. The values are the same.
    """
    found = [node for node in model.graph if node.op_type == "Transpose" and _order(node) == [0, 2, 1]]
    return sum(_replace(model.graph, node) for node in found)


def _replace(graph: ir.Graph, swap: ir.Node) -> bool:
    flat = maker(swap.inputs[0], "Reshape")
    heads_first = maker(flat.inputs[0], "Transpose") if flat is not None else None
    uses = list(swap.outputs[0].uses())
    if heads_first is None or _order(heads_first) != _HEADS_FIRST or len(uses) != 1:
        return False
    back, keys = uses[0].node, heads_first.outputs[0]
    if back.op_type != "Reshape" or not _swaps_the_last(back.inputs[1], keys):
        return False
    node = ir.node("Transpose", [heads_first.inputs[0]], {"perm": _KEYS}, name=back.name)
    old, new = back.outputs[0], node.outputs[0]
    new.type = keys.type
    if keys.shape is not None:
        new.shape = ir.Shape([keys.shape[axis] for axis in (0, 1, 3, 2)])
    ir.convenience.replace_nodes_and_values(graph, back, [back], [node], [old], [new])
    return True


def _swaps_the_last(shape: ir.Value | None, keys: ir.Value) -> bool:
    """Whether ``shape`` is that of ``keys`` with its last two sizes exchanged."""
    joined = maker(shape, "Concat")
    cuts = [_cut(value, keys) for value in joined.inputs] if joined is not None else []
    return len(cuts) == 3 and None not in cuts and cuts[0] == [0, 1] and cuts[1:] == [[3], [2]]


def _cut(value: ir.Value | None, keys: ir.Value) -> list[int] | None:
    """Which of the four sizes of ``keys`` a piece of its shape holds."""
    cut = maker(value, "Slice")
    sizes = maker(cut.inputs[0], "Shape") if cut is not None else None
    if cut is None or sizes is None or sizes.inputs[0] is not keys or len(cut.inputs) > 3:
        return None
    first, last = (number(bound) for bound in cut.inputs[1:3])
    return None if first is None or last is None else list(range(4))[int(first) : int(last)]


def _order(node: ir.Node) -> list[int]:
    return list(node.attributes.get_ints("perm", []))
