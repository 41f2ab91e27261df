"""The exported graphs: dynamic, free of what engines do not take, and nothing left of where they were traced."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from export.errors import ExportError, WeightsError
from export.graph import FORBIDDEN_TYPES, OPSET
from export.networks.t5 import t5_network
from export.passes.attach_weights import attach_inline
from export.passes.blank_weights import blank_weights
from export.passes.check_ports import check_ports
from export.passes.transpose_weights import transpose_weights
from tests.export.conftest import MODES, WIDTH, Built

PORTS = {
    "clip": ({"input_ids": ["batch", 24]}, {"pooled": ["batch", WIDTH]}),
    "t5": ({"input_ids": ["batch", "text_tokens"]}, {"sequence": ["batch", "text_tokens", WIDTH]}),
    "backbone": (
        {
            "hidden_states": ["batch", "image_tokens", 16],
            "encoder_hidden_states": ["batch", "text_tokens", WIDTH],
            "pooled_projections": ["batch", WIDTH],
            "timestep": ["batch"],
            "guidance": ["batch"],
            "img_ids": ["image_tokens", 3],
            "txt_ids": ["text_tokens", 3],
        },
        {
            "means": ["batch", "image_tokens", MODES, 16],
            "logweights": ["batch", "image_tokens", MODES, 4],
            "loggammas": ["batch", "image_tokens", MODES - 1, 4],
        },
    ),
    "vae_decoder": (
        {"latents": ["batch", 4, "rows", "columns"]},
        {"images": ["batch", 3, "2*rows", "2*columns"]},
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
