"""One Unsqueeze before a Split instead of one behind each of its pieces: what modulation is full of."""

from __future__ import annotations

import onnx_ir as ir

_MIDDLE = [1]


def unsqueeze_first(model: ir.Model) -> int:
    """Replace [B, n C] -> Split -> [B, C] -> Unsqueeze -> [B, 1, C] where every piece goes that way.

    Returns how many splits were changed. The values are the same.
    """
    return sum(_swap(model.graph, node) for node in list(model.graph) if node.op_type == "Split")


def _swap(graph: ir.Graph, split: ir.Node) -> bool:
    readers = [use.node for piece in split.outputs for use in piece.uses()]
    source = split.inputs[0]
    if not readers or source is None or source.shape is None or source.shape.rank() != 2:
        return False
    if split.attributes.get_int("axis", 0) not in (1, -1) or any(piece.is_graph_output() for piece in split.outputs):
        return False
    if not all(reader.op_type == "Unsqueeze" and _axes(reader) == _MIDDLE for reader in readers):
        return False
    wider = ir.node("Unsqueeze", [source, readers[0].inputs[1]])
    wider.outputs[0].type = source.type
    wider.outputs[0].shape = ir.Shape([source.shape[0], 1, source.shape[1]])
    attributes = {**split.attributes, "axis": ir.AttrInt64("axis", -1)}
    again = ir.Node("", "Split", [wider.outputs[0], *split.inputs[1:]], attributes.values(), name=split.name,
                    num_outputs=len(split.outputs))  # fmt: skip
    split.prepend(wider)
    split.prepend(again)
    for piece, new in zip(split.outputs, again.outputs, strict=True):
        new.type = piece.type
        for reader in [use.node for use in piece.uses()]:
            new.shape = reader.outputs[0].shape
            reader.outputs[0].replace_all_uses_with(new)
            graph.remove(reader, safe=True)
    graph.remove(split, safe=True)
    return True


def _axes(node: ir.Node) -> list[int] | None:
    constant = ir.convenience.get_const_tensor(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    return constant.numpy().tolist() if constant is not None else None
