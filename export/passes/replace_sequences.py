"""Cut tensors with slices where the trace made a sequence of pieces: engines know no sequences."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.errors import ExportError
from export.passes.match import constant

_TO_THE_END = np.iinfo(np.int64).max


def replace_sequences(model: ir.Model) -> int:
    """Replace every ``SplitToSequence`` and the ``SequenceAt`` that read it by one ``Slice`` a piece.

    Piece lengths may be symbolic. Returns how many splits were replaced; raises ExportError for one whose pieces are
    not listed one by one (``Concat`` of one-element tensors, or a constant) or are not read by constant index.
    """
    splits = [node for node in model.graph if node.op_type == "SplitToSequence"]
    for split in splits:
        lengths = _lengths(model, split)
        for reader, _ in tuple(split.outputs[0].uses()):
            _slice(model, split, reader, lengths)
        model.graph.remove(split, safe=True)
    return len(splits)


def _lengths(model: ir.Model, split: ir.Node) -> list[ir.Value]:
    """The length of each piece, a value of shape [1]."""
    given = split.inputs[1]
    if given is not None and given.const_value is not None and given.const_value.shape.rank() == 1:
        return [_index(model, int(length)) for length in given.const_value.numpy()]
    producer = given.producer() if given is not None else None
    if producer is None or producer.op_type != "Concat":
        raise ExportError(f"cannot cut {split.outputs[0].name}: the lengths of its pieces are not listed")
    lengths = [value for value in producer.inputs if value is not None]
    if not all(_is_single(value) for value in lengths):
        raise ExportError(f"cannot cut {split.outputs[0].name}: its pieces are not listed one by one")
    return lengths


def _is_single(value: ir.Value) -> bool:
    """Whether a vector is known to have one element: by its shape, or because it is a scalar reshaped."""
    if value.shape is not None:
        return value.shape == (1,)
    producer = value.producer()
    scalar = producer.inputs[0] if producer is not None and producer.op_type in ("Reshape", "Unsqueeze") else None
    return scalar is not None and scalar.shape is not None and scalar.shape.rank() == 0


def _slice(model: ir.Model, split: ir.Node, reader: ir.Node, lengths: list[ir.Value]) -> None:
    position = reader.inputs[1] if reader.op_type == "SequenceAt" else None
    index = position.const_value if position is not None else None
    if index is None:
        raise ExportError(f"cannot cut {split.outputs[0].name}: {reader.op_type} reads it at no constant position")
    piece = int(index.numpy()) % len(lengths)
    start = _sum(reader, lengths[:piece]) or _index(model, 0)
    last = piece == len(lengths) - 1
    end = _index(model, _TO_THE_END) if last else _sum(reader, lengths[: piece + 1]) or start
    axis = _index(model, split.attributes.get_int("axis", 0))
    old = reader.outputs[0]
    cut = ir.node("Slice", [split.inputs[0], start, end, axis], name=reader.name)
    new = cut.outputs[0]
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_nodes_and_values(model.graph, reader, [reader], [cut], [old], [new])


def _sum(before: ir.Node, lengths: list[ir.Value]) -> ir.Value | None:
    """The sum of some lengths (None where there are none), computed before that node."""
    if not lengths:
        return None
    total = lengths[0]
    for length in lengths[1:]:
        node = ir.node("Add", [total, length])
        before.prepend(node)
        total = node.outputs[0]
        total.shape, total.type = ir.Shape([1]), ir.TensorType(ir.DataType.INT64)
    return total


def _index(model: ir.Model, number: int) -> ir.Value:
    """An initializer of shape [1] with that number."""
    return constant(model, f"index_{number}", np.array([number], dtype=np.int64))
