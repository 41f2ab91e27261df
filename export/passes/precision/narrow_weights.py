"""Store matrices in float16 that are multiplied in float32: half the file, and the same arithmetic.

    W (float16) -> Cast -> (whatever multiplies with W)
    W (float16) -> Transpose -> Cast -> (whatever multiplies with W transposed)
    W (float16) -> Gather -> Cast -> (whatever reads those rows of W)

ONNX Runtime widens constants once, when a session is made, so that products run as they do in float32: the graph that
it runs has no Cast of them (a test counts its nodes). A Cast stands behind the Transpose of its weight, which can then
still be stored transposed, and behind a Gather, of which the few rows alone are widened, at every call, and not the
table: Qwen2.5-VL's would take 2.2 GB in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from export.passes.precision.widen import widen
from export.weights.files import matches

LEAST = 1024
"""Elements from which on a matrix is narrowed: of a smaller one the Cast takes about what the weight saves."""

MOST = 1 << 28
"""Elements up to which a matrix that is multiplied is narrowed: ONNX Runtime 1.32 folds results of up to 1 GiB, and
would widen a larger one at every call."""

_FLOAT, _FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


def halve_weights(model: ir.Model, kept: Sequence[str] = ()) -> tuple[str, ...]:
    """Make blank float32 initializers of two dimensions or more float16, widened in the graph; returns their names.

    In place. Left alone are vectors (biases, norms), what is too small or too large (:data:`LEAST`, :data:`MOST`), and
    names that match one of ``kept`` (fnmatch). The values come later, and what does not fit into float16 is an error
    then (:class:`export.assembling.stored.StoredTensors`).
    """
    blanks = [value for value in model.graph.initializers.values() if value.const_value is None]
    weights = [value for value in blanks if not matches(str(value.name), kept) and _is_worth_it(value)]
    order = {node: place for place, node in enumerate(model.graph)}
    for weight in weights:
        moved = [use.node.outputs[0] for use in weight.uses()] if _is_only(weight, "Transpose", "Gather") else []
        weight.type = ir.TensorType(_FLOAT16)  # Not its dtype: a type may be shared with other values.
        for narrow in moved or [weight]:
            narrow.type = ir.TensorType(_FLOAT16)
            readers = [use.node for use in narrow.uses()]
            if readers:
                widen(model.graph, narrow, min(readers, key=order.__getitem__))
    return tuple(str(weight.name) for weight in weights)


def _is_worth_it(value: ir.Value) -> bool:
    """Whether it is a matrix of float32, or a kernel, of a size to be narrowed. A weight's shape is never symbolic."""
    shape = [dimension for dimension in value.shape or () if isinstance(dimension, int)]
    most = math.inf if _is_only(value, "Gather") else MOST
    return value.dtype == _FLOAT and len(shape) >= 2 and LEAST <= math.prod(shape) <= most


def _is_only(weight: ir.Value, *kinds: str) -> bool:
    """Whether all that reads a weight moves its values, by nodes of these kinds, inside the graph."""
    return all(
        use.idx == 0 and use.node.op_type in kinds and not use.node.outputs[0].is_graph_output()
        for use in weight.uses()
    )
