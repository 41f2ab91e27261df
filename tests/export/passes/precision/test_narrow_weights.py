"""Matrices that are float16 in the file alone: which they are, what they are multiplied in, where they are widened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.assembling.attach import attach_external, attach_inline, data_name
from export.assembling.graph import finish, trace
from export.assembling.parity import HALVED_LIMITS, LIMITS, check_parity
from export.errors import ExportError, ParityError, WeightsError
from export.networks.base import Network
from export.networks.clip import clip_network
from export.networks.flux_backbone import flux_backbone_network
from export.networks.flux_conditioner import flux_conditioner_network
from export.networks.t5 import t5_network
from export.passes.precision.narrow_weights import LEAST, MOST, halve_weights
from export.passes.transpose_weights import transpose_weights
from export.precision import STORED_WHOLE
from export.students.rollout import cpu_session
from export.weights.merge import merge
from tests.export.conftest import Sources

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


@pytest.fixture(scope="module")
def t5(sources: Sources) -> Network:
    return t5_network(sources.base / "text_encoder_2")


@pytest.fixture(scope="module")
def conditioner(sources: Sources) -> Network:
    transformer = sources.base / "transformer"
    return flux_conditioner_network(transformer, merge(transformer, sources.adapter))


def blank(name: str, shape: Sequence[int], dtype: ir.DataType = FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def graph_of(nodes: Sequence[ir.Node], weights: Sequence[ir.Value], inputs: Sequence[ir.Value] = ()) -> ir.Model:
    graph = ir.Graph(inputs, [nodes[-1].outputs[0]], nodes=nodes, initializers=weights, opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


def weights_of(model: ir.Model) -> dict[str, ir.Value]:
    return {str(value.name): value for value in model.graph.initializers.values() if value.const_value is None}


def test_matrices_are_halved_and_nothing_else(sources: Sources, t5: Network) -> None:
    for network, positions in (
        (t5, "relative_attention_bias"),
        (clip_network(sources.base / "text_encoder"), "position"),
    ):
        whole, halved = weights_of(trace(network)), weights_of(trace(network, stored="float16"))
        assert list(halved) == list(whole)
        for name, value in halved.items():
            shape = [dimension for dimension in value.shape or () if isinstance(dimension, int)]
            large = len(shape) >= 2 and int(np.prod(shape)) >= LEAST and positions not in name
            assert value.dtype == (FLOAT16 if large else FLOAT), name
        assert any(positions in name for name in halved)


def test_products_are_float32_and_each_reads_a_cast_matrix(conditioner: Network) -> None:
    model = trace(conditioner, stored="float16")
    halved = {name for name, value in weights_of(model).items() if value.dtype == FLOAT16}
    widened = set[str]()
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm"):
            assert all(value is None or value.dtype == FLOAT for value in node.inputs)
            cast: Any = node.inputs[1].producer() if node.inputs[1] is not None else None
            source = cast.inputs[0]
            widened.add(source.name if source.is_initializer() else source.producer().inputs[0].name)
    assert widened == halved
    assert len(halved) == 11


def test_a_transposed_weight_is_stored_transposed(t5: Network) -> None:
    model = trace(t5, stored="float16")
    attach_inline(model, t5)
    before = sum(node.op_type == "Transpose" for node in model.graph)
    # Each layer's query, key, value, output and three of the MLP.
    assert transpose_weights(model) == 7
    assert sum(node.op_type == "Transpose" for node in model.graph) == before - 7
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert max(result.relative_error for result in check_parity(t5, finish(model, t5), "fp16")) > 1e-5


def test_of_a_table_the_rows_are_widened_and_not_the_table(t5: Network) -> None:
    model = trace(t5, stored="float16")
    (looked_up,) = model.graph.initializers["encoder.embed_tokens.weight"].uses()
    gather = looked_up.node
    assert gather.op_type == "Gather"
    assert gather.outputs[0].dtype == FLOAT16
    (use,) = gather.outputs[0].uses()
    assert (use.node.op_type, use.node.outputs[0].dtype) == ("Cast", FLOAT)


def test_what_is_too_small_too_large_or_no_float32_stays() -> None:
    ids = blank("ids", [3], ir.DataType.INT64)
    shapes = {
        "small": (31, 33),
        "least": (32, 32),
        "vector": (4096,),
        "most": (1 << 14, 1 << 14),
        "large": (1 << 15, 1 << 14),
    }
    weights = [blank(name, shape) for name, shape in shapes.items()]
    table = blank("table", (1 << 15, 1 << 14))
    double = blank("double", (64, 64), ir.DataType.DOUBLE)
    rest = [ir.node("Neg", [weight]) for weight in (*weights, double)]
    model = graph_of([ir.node("Gather", [table, ids]), *rest], [*weights, table, double], [ids])
    assert MOST == 1 << 28
    assert set(halve_weights(model)) == {"least", "most", "table"}
    assert not halve_weights(model), "what is float16 is not narrowed again"


def test_what_is_named_stays_whole() -> None:
    name = "text.position_embedding.weight"
    weight = blank(name, (64, 64))
    model = graph_of([ir.node("Neg", [weight])], [weight])
    assert halve_weights(model, STORED_WHOLE) == ()
    assert halve_weights(model) == (name,)


def test_readers_of_several_kinds_share_one_cast() -> None:
    """A matrix that is both looked up in and multiplied is widened itself, once, in front of the first reader."""
    ids, weight = blank("ids", [3], ir.DataType.INT64), blank("weight", (64, 64))
    rows = ir.node("Gather", [weight, ids])
    product = ir.node("MatMul", [rows.outputs[0], weight])
    model = graph_of([rows, product], [weight], [ids])
    assert halve_weights(model) == ("weight",)
    assert [node.op_type for node in model.graph] == ["Cast", "Gather", "MatMul"]
    assert [use.node.op_type for use in weight.uses()] == ["Cast"]


def test_beside_the_graph_weights_are_the_same_float16_run_by_run(
    conditioner: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.weights import files

    monkeypatch.setattr(files, "CHUNK", 4 * 4096)
    inside, beside = trace(conditioner, stored="float16"), trace(conditioner, stored="float16")
    attach_inline(inside, conditioner)
    attach_external(beside, conditioner, tmp_path)
    stored = load_file(tmp_path / data_name("conditioner"))
    for name, value in weights_of(trace(conditioner, stored="float16")).items():
        wanted = conditioner.weights.read(name).to(torch.float16 if value.dtype == FLOAT16 else torch.float32)
        assert torch.equal(stored[name], wanted), name
    inputs = conditioner.examples(conditioner.parity_sizes[0], torch.Generator().manual_seed(0))
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
    both = [cpu_session(finish(model, conditioner), tmp_path).run(None, given) for model in (inside, beside)]
    assert all(np.array_equal(a, b) for a, b in zip(*both, strict=True))


def test_a_weight_beyond_float16_is_named_and_nothing_is_written(sources: Sources, tmp_path: Path) -> None:
    folder = tmp_path / "text_encoder_2"
    folder.mkdir()
    for file in (sources.base / "text_encoder_2").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["encoder.block.0.layer.1.DenseReluDense.wo.weight"][3, 5] = 65_520.0  # The first that rounds to infinity.
    save_file(tensors, file, metadata={"format": "pt"})
    network, message = t5_network(folder), r"DenseReluDense\.wo\.weight has values beyond the range of F16; .*fp32"
    with pytest.raises(WeightsError, match=message):
        attach_inline(trace(network, stored="float16"), network)
    with pytest.raises(WeightsError, match=message):
        attach_external(trace(network, stored="float16"), network, tmp_path / "beside")
    assert not (tmp_path / "beside" / data_name("t5")).exists()
    attach_inline(trace(network), network)


def test_the_limits_are_those_of_float16_and_not_of_less(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone whose matrices had bfloat16's 8 bits in place of 11 is not let through."""
    transformer = sources.base / "transformer"
    network = flux_backbone_network(transformer, merge(transformer, sources.adapter))
    model = trace(network, stored="float16")
    attach_inline(model, network)
    found = check_parity(network, finish(model, network), "fp16")
    assert {result.limit for result in found} == {HALVED_LIMITS["backbone"]}
    assert all(result.relative_error > LIMITS["fp32"] / 10 for result in found)
    for value in model.graph.initializers.values():
        if value.dtype == FLOAT16 and value.const_value is not None:
            rounded = torch.from_numpy(value.const_value.numpy().copy()).bfloat16().half()
            value.const_value = ir.tensor(rounded.numpy(), name=value.name)
    with pytest.raises(ParityError, match=r"the limit for float32 with matrices in float16 is 8e-04"):
        check_parity(network, finish(model, network), "fp16")


def test_only_float32_is_stored_in_less_than_it_computes_in(t5: Network) -> None:
    for dtype, stored in (("bfloat16", "float16"), ("float16", "float32"), ("float32", "bfloat16")):
        with pytest.raises(ExportError, match=f"no matrices in {stored} where {dtype} is computed in"):
            trace(t5, dtype, 23, stored)
