"""Counting a network: against torch's own counter, against shapes worked out by hand, and what is rejected."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from engines.bundle import open_bundle
from runtime.bench.roofline import Cost, Peak, cost_of, evaluate, limit_of
from runtime.errors import BackendError
from tests.runtime.conftest import COMMITTED

MODEL = Path(__file__).parents[3] / "models" / "tiny"
SIZES = {"batch": 2, "levels": 2, "image_tokens": 16, "text_tokens": 12, "rows": 8, "columns": 8}


def test_the_backbone_takes_what_torch_counts() -> None:
    """The same student under torch's FlopCounterMode, which knows nothing of ONNX."""
    import torch
    from diffusers import FluxTransformer2DModel
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from arcflow.adapter import read_adapter
    from arcflow.architectures import flux
    from arcflow.students import build_student

    backbone = FluxTransformer2DModel.from_pretrained(MODEL / "teacher" / "transformer", local_files_only=True)
    adapter = read_adapter(MODEL / "adapter")
    student = build_student(dict(backbone.config), adapter.config.modes).eval()
    condition = flux.Condition(
        torch.zeros(2, 64), torch.zeros(2, 12, 64), torch.ones(2), flux.image_ids(4, 4), torch.zeros(12, 3)
    )
    # The counter does not know the CPU's fused attention; the plain one is two products that it does know.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        flux.evaluate(student, torch.zeros(2, 16, 64), torch.ones(2), condition)
    bundle = open_bundle(COMMITTED, contents="when used")
    # Of a level an image the conditioner and an evaluation do together what the student does.
    costs = [cost_of(bundle.read(f"{name}.onnx"), SIZES) for name in ("conditioner", "backbone")]
    assert sum(cost.total_operations for cost in costs) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert all(set(cost.operations) == {"float32"} for cost in costs)


def test_every_network_of_the_bundle_can_be_counted() -> None:
    bundle = open_bundle(COMMITTED, contents="when used")
    for network in bundle.manifest.networks.values():
        data = bundle.read(network.file)
        cost = cost_of(data, SIZES)
        assert cost.total_operations > 0
        assert 0.8 * len(data) < cost.weight_bytes < len(data)


def product(kind: int, inner: int = 4) -> bytes:
    """[rows*2, inner] x [inner, 3], both sides through 8-bit floats where ``kind`` is one."""
    nodes, names = [], ["a", "b"]
    shapes: list[list[int | str]] = [["2*rows", inner], [inner, 3]]
    initializers = [helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5])]
    if kind == TensorProto.FLOAT8E4M3FN:
        for index, name in enumerate(("a", "b")):
            nodes += [
                helper.make_node("QuantizeLinear", [name, "scale"], [f"{name}_q"], output_dtype=kind),
                helper.make_node("DequantizeLinear", [f"{name}_q", "scale"], [f"{name}_d"]),
            ]
            names[index] = f"{name}_d"
    nodes.append(helper.make_node("MatMul", names, ["c"]))
    port = TensorProto.FLOAT if kind == TensorProto.FLOAT8E4M3FN else kind
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, port, s) for n, s in zip(("a", "b"), shapes, strict=True)],
        [helper.make_tensor_value_info("c", port, None)],
        initializers,
    )
    model: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()
    return model


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (TensorProto.FLOAT, "float32"),
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.FLOAT8E4M3FN, "float8"),
    ],
)
def test_a_product_counts_in_the_type_it_is_computed_in(kind: int, name: str) -> None:
    assert cost_of(product(kind), {"rows": 5}).operations == {name: 2.0 * 10 * 4 * 3}


def test_bytes_are_those_that_are_stored() -> None:
    cost = cost_of(product(TensorProto.FLOAT16), {"rows": 5})
    assert cost.weight_bytes == 4
    assert cost.port_bytes == 2 * (10 * 4 + 4 * 3 + 10 * 3)


def test_attention_is_two_products() -> None:
    shapes = {"q": ["batch", 2, 6, 8], "k": ["batch", 2, 10, 8], "v": ["batch", 2, 10, 8]}
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2, 6, 8])
    graph = helper.make_graph([helper.make_node("Attention", list(shapes), ["y"])], "g", ports, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    assert cost_of(model.SerializeToString(), {"batch": 3}).operations == {"float32": 2 * (2.0 * 3 * 2 * 6 * 10 * 8)}


def test_the_limit_is_the_larger_of_compute_and_memory() -> None:
    peak = Peak({"float32": 100.0, "float8": 200.0}, 10.0, "a sheet")
    compute = limit_of(Cost({"float32": 100.0, "float8": 100.0}, 5, 5), peak)
    assert (compute.seconds, compute.bound) == (1.5, "compute")
    memory = limit_of(Cost({"float32": 1.0}, 30, 10), peak)
    assert (memory.seconds, memory.bound) == (4.0, "memory")
    with pytest.raises(BackendError, match="no peak is known for float16; known: float32, float8"):
        limit_of(Cost({"float16": 1.0}, 1, 1), peak)


@pytest.mark.parametrize(
    ("expression", "value"), [("rows", 3), ("8*rows", 24), ("rows*columns + 1", 16), ("floor(columns/2)", 2)]
)
def test_dimensions_are_evaluated(expression: str, value: int) -> None:
    assert evaluate(expression, {"rows": 3, "columns": 5}) == value


@pytest.mark.parametrize("expression", ["unknown", "rows**9", "__import__('os')", "rows.real", "", "rows/0"])
def test_what_is_not_arithmetic_of_known_sizes_is_refused(expression: str) -> None:
    with pytest.raises(BackendError, match="cannot be evaluated; known sizes: rows"):
        evaluate(expression, {"rows": 3})


def test_what_cannot_be_counted_is_an_error() -> None:
    with pytest.raises(BackendError, match="cannot be read as ONNX"):
        cost_of(b"\xff" * 40, {})
    shapeless = onnx.load_model_from_string(product(TensorProto.FLOAT))
    shapeless.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(BackendError, match=r"MatMul '': the graph does not say the shape of 'c'"):
        cost_of(shapeless.SerializeToString(), {"rows": 1})
