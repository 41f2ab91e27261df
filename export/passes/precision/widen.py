"""Let what reads a 16-bit value read it as float32."""

from __future__ import annotations

import onnx_ir as ir

_FLOAT = ir.DataType.FLOAT


def widen(graph: ir.Graph, narrow: ir.Value, before: ir.Node) -> None:
    """Give every reader of ``narrow`` its float32 cast, which is made in front of the node ``before``."""
    cast = ir.node("Cast", [narrow], {"to": int(_FLOAT)})
    wide = cast.outputs[0]
    wide.name, wide.shape, wide.type = f"{narrow.name}/float32", narrow.shape, ir.TensorType(_FLOAT)
    narrow.replace_all_uses_with(wide)
    cast.replace_input_with(0, narrow)
    graph.insert_before(before, cast)
