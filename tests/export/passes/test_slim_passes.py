"""The passes that make a CPU's graph smaller: fewer nodes, the same values to the bit; what looks alike stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from export.passes.swap_pairs import swap_pairs
from export.passes.transpose_keys import transpose_keys
from export.passes.unsqueeze_first import unsqueeze_first

Pass = Callable[[ir.Model], int]

KEYS = """<ir_version: 10, opset_import: ["" : 20]>
g (float[B, T, 3, 4] x) => (float[B, 3, 4, T] y)
< int64[1] zero = {{0}}, int64[1] minus_1 = {{-1}}, int64[1] minus_2 = {{-2}}, int64[1] end = {{9223372036854775807}} >
{{
    keys = Transpose <perm = [0, {order}, 3]> (x)
    sizes = Shape (keys)
    tokens = Slice (sizes, minus_2, minus_1)
    width = Slice (sizes, minus_1, end)
    lead = Slice (sizes, zero, minus_2)
    flat_sizes = Concat <axis = 0> (minus_1, tokens, width)
    flat = Reshape (keys, flat_sizes)
    swapped = Transpose <perm = [0, 2, 1]> (flat)
    back_sizes = Concat <axis = 0> (lead, {last})
    y = Reshape (swapped, back_sizes)
}}"""

MODULATION = """<ir_version: 10, opset_import: ["" : 20]>
g (float[B, 6] x, float[B, 5, 2] h) => (float[B, 5, 2] y)
< int64[1] middle = {{{axis}}} >
{{
    scale, shift, gate = Split <axis = {split}, num_outputs = 3> (x)
    wide_scale = Unsqueeze (scale, middle)
    wide_shift = Unsqueeze (shift, middle)
    wide_gate = Unsqueeze (gate, middle)
    scaled = Mul (h, wide_scale)
    shifted = Add (scaled, wide_shift)
    y = Mul (shifted, {gate})
}}"""

ROTATION = """<ir_version: 10, opset_import: ["" : 20]>
g (float[B, 5, 2, 8] x, float[5, 8] angle) => (float[B, 5, 2, 8] y)
<
    int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] last = {{-1}}, int64[1] second = {{1}},
    int64[5] pairs_shape = {{0, 0, 0, 4, 2}}, int64[4] shape = {{0, 0, 0, 8}}
>
{{
    sine = Sin (angle)
    cosine = Cos (angle)
    wide_sine = Unsqueeze (sine, second)
    wide_cosine = Unsqueeze (cosine, second)
    pairs = Reshape (x, pairs_shape)
    a_cut = Slice (pairs, zero, one, last)
    a = Squeeze (a_cut, last)
    b_cut = Slice (pairs, one, two, last)
    b = Squeeze (b_cut, last)
    minus = Neg ({negated})
    minus_wide = Unsqueeze (minus, last)
    other_wide = Unsqueeze ({other}, last)
    stack = Concat <axis = -1> (minus_wide, other_wide)
    turned = Reshape (stack, shape)
    straight = Mul (x, wide_cosine)
    across = Mul (turned, wide_sine)
    y = Add (straight, across)
}}"""


def parsed(text: str) -> ir.Model:
    """The graph of a text, with the types and shapes that a trace would have given its values."""
    import onnx

    proto = onnx.shape_inference.infer_shapes(ir.to_proto(ir.from_onnx_text(text)), data_prop=True)
    return ir.from_proto(proto)


def run(model: ir.Model) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    random, sizes = np.random.default_rng(0), {"B": 2, "T": 5}
    inputs = {
        port.name: random.standard_normal([sizes.get(d, d) for d in port.shape], dtype=np.float32)
        for port in session.get_inputs()
    }
    result: NDArray[np.float32] = session.run(None, inputs)[0]
    return result


@pytest.mark.parametrize(
    ("change", "text", "before", "after"),
    [
        (transpose_keys, KEYS.format(order="2, 1", last="width, tokens"), 10, 1),
        (unsqueeze_first, MODULATION.format(axis=1, split=1, gate="wide_gate"), 7, 5),
        (unsqueeze_first, MODULATION.format(axis=1, split=-1, gate="wide_gate"), 7, 5),
        (swap_pairs, ROTATION.format(negated="b", other="a"), 17, 11),
    ],
)
def test_fewer_nodes_compute_the_same_bits(change: Pass, text: str, before: int, after: int) -> None:
    model = parsed(text)
    assert len(model.graph) == before
    expected = run(model)
    assert change(model) == 1
    RemoveUnusedNodesPass()(model)
    assert len(model.graph) == after
    np.testing.assert_array_equal(run(model), expected)
    assert change(model) == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (transpose_keys, KEYS.format(order="1, 2", last="width, tokens")),  # the keys come as they are
        (transpose_keys, KEYS.format(order="2, 1", last="tokens, width")),  # back to the old shape: other values
        (unsqueeze_first, MODULATION.format(axis=0, split=1, gate="wide_gate")),
        (unsqueeze_first, MODULATION.format(axis=1, split=1, gate="gate")),  # one piece is used as it is
        (swap_pairs, ROTATION.format(negated="a", other="b")),  # (-a, b) is no rotation by a quarter
    ],
)
def test_what_looks_alike_stays(change: Pass, text: str) -> None:
    model = parsed(text)
    assert change(model) == 0
