"""The exported graphs: dynamic, free of what engines do not take, and nothing left of where they were traced."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from export.architectures.flux import FLUX
from export.assembling.attach import attach_inline
from export.assembling.graph import FORBIDDEN_TYPES, OPSET, finish, trace
from export.assembling.parity import check_parity
from export.errors import ExportError, WeightsError
from export.networks.t5 import t5_network
from export.passes.blank_weights import blank_weights
from export.passes.check_ports import check_ports
from export.passes.fuse_rms_norm import fuse_rms_norm
from export.passes.replace_sequences import replace_sequences
from export.passes.transpose_weights import transpose_weights
from export.weights.merge import merge
from tests.export.conftest import MODES, WIDTH, Built, Sources

INNER, ROTARY = 32, 16
MODULATION = 576
"""17 times the width, filled up to a multiple of 64."""

PORTS = {
    "clip": ({"input_ids": ["batch", 24]}, {"pooled": ["batch", WIDTH]}),
    "t5": ({"input_ids": ["batch", "text_tokens"]}, {"sequence": ["batch", "text_tokens", WIDTH]}),
    "conditioner": (
        {
            "timestep": ["levels"],
            "guidance": ["levels"],
            "pooled_projections": ["levels", WIDTH],
            "encoder_hidden_states": ["batch", "text_tokens", WIDTH],
            "img_ids": ["image_tokens", 3],
            "txt_ids": ["text_tokens", 3],
        },
        {
            "modulation": ["levels", MODULATION],
            "context": ["batch", "text_tokens", INNER],
            "image_rotary": ["image_tokens", 2 * ROTARY],
            "text_rotary": ["text_tokens", 2 * ROTARY],
        },
    ),
    "backbone": (
        {
            "hidden_states": ["batch", "image_tokens", 16],
            "modulation": ["batch", MODULATION],
            "context": ["batch", "text_tokens", INNER],
            "image_rotary": ["image_tokens", 2 * ROTARY],
            "text_rotary": ["text_tokens", 2 * ROTARY],
        },
        {
            "means": ["batch", "image_tokens", MODES, 16],
            "logweights": ["batch", "image_tokens", MODES, 4],
            "loggammas": ["batch", "image_tokens", MODES - 1, 4],
        },
    ),
    "vae_decoder": (
        {"latents": ["batch", 4, "rows", "columns"]},
        {"images": ["batch", 3, "4*rows", "4*columns"]},
    ),
}


@pytest.mark.parametrize("name", PORTS)
def test_ports_are_the_documented_ones_and_stay_symbolic(built: Built, name: str) -> None:
    graph = onnx.load(built.bundle / f"{name}.onnx").graph
    for values, ports in zip((graph.input, graph.output), PORTS[name], strict=True):
        found = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        assert found == ports


@pytest.mark.parametrize("name", PORTS)
def test_a_graph_holds_nothing_of_its_origin(built: Built, name: str) -> None:
    path = built.bundle / f"{name}.onnx"
    model = onnx.load(path)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    assert not model.metadata_props
    assert not model.doc_string
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert b".py" not in path.read_bytes()
    forbidden = {onnx.TensorProto.DataType.Value(kind) for kind in FORBIDDEN_TYPES}
    kinds = {value.type.tensor_type.elem_type for value in model.graph.value_info}
    kinds |= {tensor.data_type for tensor in model.graph.initializer}
    assert not kinds & forbidden


def test_weights_keep_their_state_dict_names(built: Built) -> None:
    names = {tensor.name for tensor in onnx.load(built.bundle / "backbone.onnx").graph.initializer}
    assert {"x_embedder.weight", "transformer_blocks.0.ff.net.2.weight", "proj_out.loggammas.bias"} <= names


def test_gates_are_normalised_and_any_size_runs(built: Built) -> None:
    session = onnxruntime.InferenceSession(built.bundle / "backbone.onnx", providers=["CPUExecutionProvider"])
    for batch, image, text in ((1, 1, 1), (4, 30, 12)):
        sizes = {"batch": batch, "image_tokens": image, "text_tokens": text}
        inputs = {
            port.name: np.full([sizes.get(d, d) for d in port.shape], 0.5, np.float32) for port in session.get_inputs()
        }
        means, logweights, loggammas = session.run(None, inputs)
        assert means.shape == (batch, image, MODES, 16)
        assert loggammas.shape == (batch, image, MODES - 1, 4)
        np.testing.assert_allclose(np.exp(logweights).sum(axis=2), 1.0, rtol=1e-5)


@pytest.fixture
def t5(built: Built) -> ir.Model:
    return ir.load(built.bundle / "t5.onnx")


def test_a_dimension_that_became_a_number_is_refused(built: Built, t5: ir.Model) -> None:
    network = t5_network(built.sources.base / "text_encoder_2")
    check_ports(t5, network)
    t5.graph.outputs[0].shape = ir.Shape(["batch", 12, WIDTH])
    with pytest.raises(ExportError, match=r"sequence has the dimensions \['batch', 12, 64\]"):
        check_ports(t5, network)


def test_wrong_names_are_refused(built: Built, t5: ir.Model) -> None:
    t5.graph.inputs[0].name = "ids"
    with pytest.raises(ExportError, match="'input_ids'"):
        check_ports(t5, t5_network(built.sources.base / "text_encoder_2"))


def test_a_trace_with_a_constant_tensor_is_refused(t5: ir.Model) -> None:
    with pytest.raises(ExportError, match="constant tensor"):
        blank_weights(t5)


def test_a_weight_that_the_file_lacks_is_named(built: Built) -> None:
    network = t5_network(built.sources.base / "text_encoder_2")
    for name, shape, message in (("nowhere", [1], "lacks nowhere"), ("shared.weight", [1, 2], "shape")):
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}), ir_version=10)
        model.graph.initializers.add(value)
        with pytest.raises(WeightsError, match=message):
            attach_inline(model, network)


def test_weights_are_stored_transposed_only_where_nothing_else_reads_them() -> None:
    shared, own = (
        ir.Value(name=n, const_value=ir.tensor(np.arange(6, dtype=np.float32).reshape(2, 3), name=n)) for n in "ab"
    )
    nodes = [ir.node("Transpose", [weight], {"perm": [1, 0]}) for weight in (shared, shared, own)]
    sums = [ir.node("Add", [node.outputs[0], node.outputs[0]]) for node in nodes]
    outputs = [node.outputs[0] for node in sums]
    graph = ir.Graph([], outputs, nodes=[*nodes, *sums], initializers=[shared, own], opset_imports={"": OPSET})
    assert transpose_weights(ir.Model(graph, ir_version=10)) == 1
    assert shared.const_value is not None
    assert own.const_value is not None
    assert (shared.const_value.shape, own.const_value.shape) == ((2, 3), (3, 2))


COMPUTED = [("clip", "float16"), ("backbone", "float16"), ("backbone", "bfloat16")]
TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
SEQUENCES = {"SplitToSequence", "SequenceAt", "SequenceConstruct", "ConcatFromSequence"}


@pytest.mark.parametrize(("name", "dtype"), COMPUTED)
def test_a_network_computes_in_the_type_that_is_asked_for(sources: Sources, name: str, dtype: str) -> None:
    """Ports stay float32, what is stored and multiplied is of the type, and parity holds."""
    student = merge(sources.base / "transformer", sources.adapter)
    network = FLUX.network(name, sources.base, student)
    model = trace(network, dtype, 23)
    weights = [v for v in model.graph.initializers.values() if v.const_value is None]
    assert {value.dtype for value in weights} == {TYPES[dtype]}
    assert {node.inputs[0].dtype for node in model.graph if node.op_type in ("MatMul", "Conv")} == {TYPES[dtype]}
    counts = Counter(node.op_type for node in model.graph)
    assert counts["Attention"] == (2 if name == "backbone" else 1)
    assert not SEQUENCES & set(counts)
    assert counts["RMSNormalization"] == (6 if name == "backbone" else 0)
    assert counts["Reciprocal"] == counts["ReduceMean"] == 0
    angles = [node for node in model.graph if node.op_type in ("Sin", "Cos", "LogSoftmax")]
    assert len(angles) == (1 if name == "backbone" else 0)
    assert all(node.outputs[0].dtype == ir.DataType.FLOAT for node in angles)
    # diffusers keeps hidden states within float16's range, in float16 alone.
    if name == "backbone":
        assert counts["Min"] == counts["Max"] == (2 if dtype == "float16" else 0)
    attach_inline(model, network)
    data = finish(model, network)
    assert max(r.relative_error for r in check_parity(network, data, "fp16", dtype)) > 1e-5


def test_other_types_and_opsets_are_refused(sources: Sources) -> None:
    network = t5_network(sources.base / "text_encoder_2")
    with pytest.raises(ExportError, match="no compute type float64; allowed: float32, float16, bfloat16"):
        trace(network, "float64")
    with pytest.raises(ExportError, match="no opset 22; allowed: 20, 21, 23"):
        trace(network, "float32", 22)


def test_a_graph_is_not_finished_before_its_weights_are_attached(sources: Sources, t5: ir.Model) -> None:
    network = t5_network(sources.base / "text_encoder_2")
    t5.graph.initializers["encoder.final_layer_norm.weight"].const_value = None
    with pytest.raises(ExportError, match=r"encoder\.final_layer_norm\.weight of t5 has no value yet"):
        finish(t5, network)


def test_external_weights_need_not_be_there_to_finish(built: Built, t5: ir.Model, tmp_path: Path) -> None:
    """The graph is checked, its data is not read; an unknown operator is still found."""
    network = t5_network(built.sources.base / "text_encoder_2")
    ir.save(t5, tmp_path / "t5.onnx", external_data="t5.data")
    model = ir.load(tmp_path / "t5.onnx")
    (tmp_path / "t5.data").unlink()
    assert finish(model, network) == finish(model, network)
    next(node for node in model.graph if node.op_type == "MatMul").op_type = "Nonsense"
    with pytest.raises(ExportError, match="t5 is not valid ONNX"):
        finish(model, network)


def test_sequences_become_slices_that_cut_the_same(built: Built) -> None:
    path = built.bundle / "backbone.onnx"
    model = ir.load(path)
    assert replace_sequences(model) == 1
    assert not SEQUENCES & {node.op_type for node in model.graph}
    inputs = {}
    for port in onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs():
        sizes = {"batch": 2, "image_tokens": 6, "text_tokens": 5}
        shape = [sizes.get(d, d) for d in port.shape]
        inputs[port.name] = np.random.default_rng(0).random(shape, dtype=np.float32)
    values = [
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, inputs)
        for data in (path.read_bytes(), ir.to_proto(model).SerializeToString())
    ]
    for before, after in zip(*values, strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_split_whose_pieces_are_not_listed_is_refused() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[B, N] x, int64[2] sizes, int64 at) => (float[B, M] y) {
            pieces = SplitToSequence <axis = 1> (x, sizes)
            y = SequenceAt (pieces, at)
        }"""
    )
    with pytest.raises(ExportError, match="cannot cut pieces"):
        replace_sequences(model)


RMS_NORM = """<ir_version: 10, opset_import: ["" : 23]>
g (float[2, 8] x) => (float[2, 8] y)
<
    float[8] weight = {{1, 2, 3, 4, 5, 6, 7, 8}}, float two = {{{power}}}, float epsilon = {{1e-3}},
    int64[1] axis = {{{axis}}}
> {{
    square = Pow (x, two)
    mean = ReduceMean (square, axis)
    sum = Add (mean, epsilon)
    root = Sqrt (sum)
    inverse = Reciprocal (root)
    normed = Mul (x, inverse)
    y = Mul (weight, normed)
}}"""


def test_a_spelt_out_norm_becomes_one_node_that_computes_the_same() -> None:
    x = np.random.default_rng(0).standard_normal((2, 8), dtype=np.float32)
    outputs = []
    for fuse in (False, True):
        model = ir.from_onnx_text(RMS_NORM.format(axis=-1, power=2))
        for value in (*model.graph.inputs, *model.graph.initializers.values()):
            value.dtype = value.dtype or ir.DataType.FLOAT
        model.graph.outputs[0].dtype = ir.DataType.FLOAT
        assert not fuse or fuse_rms_norm(model) == 1
        RemoveUnusedNodesPass()(model)
        assert len(model.graph) == (1 if fuse else 7)
        session = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        outputs.append(session.run(None, {"x": x})[0])
    np.testing.assert_allclose(*outputs, rtol=1e-6)


@pytest.mark.parametrize(("axis", "power"), [(0, 2), (-1, 3)])
def test_what_is_no_norm_of_the_last_axis_stays(axis: int, power: int) -> None:
    model = ir.from_onnx_text(RMS_NORM.format(axis=axis, power=power))
    assert fuse_rms_norm(model) == 0
