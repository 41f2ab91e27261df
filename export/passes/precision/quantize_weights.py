"""Store matrices in FP8 that are multiplied in the type of before: a scale a row, and no scale of any activation.

    W -> DequantizeLinear(W_scale, axis=0) -> (whatever read W)

It halves what a network takes where calibration would not pay: the error is that of the weights alone, and TensorRT
for RTX 1.7 keeps such weights in FP8 in its plans (two rows and 512, for sm89 and sm120; the plan's size tells).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from export.errors import ExportError
from export.fp8.numbers import SCALE_SUFFIX
from export.fp8.policy import select_weights

_COMPUTE = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def quantize_weights(model: ir.Model, patterns: Sequence[str], keep_high: Sequence[str] = ()) -> tuple[str, ...]:
    """Make matching blank initializers FLOAT8E4M3FN, each with a blank scale a row, in place; returns their names.

    patterns: fnmatch patterns of names, less those of ``keep_high``. The scales are of the type that the weight had,
    in which it is multiplied as before. Needs opset 21. Raises ExportError, with the graph unchanged, where one that
    matches is no matrix of a floating type.
    """
    blanks = {name: value for name, value in model.graph.initializers.items() if value.const_value is None}
    weights = [blanks[name] for name in select_weights(blanks, patterns, keep_high)]
    for weight in weights:
        if weight.dtype not in _COMPUTE or weight.shape is None or weight.shape.rank() != 2:
            raise ExportError(
                f"fp8: {weight.name} is {weight.dtype} {weight.shape}; a matrix of FLOAT, FLOAT16 or BFLOAT16 is needed"
            )
    order = {node: place for place, node in enumerate(model.graph)}
    for weight in weights:
        uses = tuple(weight.uses())
        rows = fp8_rows(model, weight, min((use.node for use in uses), key=order.__getitem__))
        for use in uses:
            use.node.replace_input_with(use.idx, rows)
    return tuple(str(weight.name) for weight in weights)


def fp8_rows(model: ir.Model, weight: ir.Value, before: ir.Node) -> ir.Value:
    """Make a blank matrix FP8 with a blank scale a row; returns what is dequantised of it, in front of a node."""
    compute, shape = ir.TensorType(weight.dtype), weight.shape  # type: ignore[arg-type]
    weight.type = ir.TensorType(ir.DataType.FLOAT8E4M3FN)  # not its dtype: a type may be shared with other values
    scale = ir.Value(name=f"{weight.name}{SCALE_SUFFIX}", type=compute, shape=ir.Shape(shape[:1]))  # type: ignore[index]
    model.graph.initializers.add(scale)
    node = ir.node("DequantizeLinear", [weight, scale], {"axis": 0}, name=f"{weight.name}_dequantise")
    result = node.outputs[0]
    result.name, result.type, result.shape = f"{weight.name}_dequantised", compute, shape
    model.graph.insert_before(before, node)
    return result
