"""The FP8 pass on graphs of one layer and on a whole student, held to the simulation in torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from export.assembling.graph import trace
from export.errors import ExportError
from export.fp8.numbers import activation_scale, fake_quantise, fake_quantise_rows, row_scales, to_codes
from export.fp8.observers import Observer
from export.fp8.policy import block_of, layer_of, select_layers, weight_of
from export.fp8.simulation import fake_quantised
from export.networks.base import Network
from export.networks.flux_student import flux_student_network
from export.passes.precision.quantize_fp8 import quantize_fp8
from export.weights.merge import merge
from tests.export.conftest import Sources


def _graph(body: str, opset: int = 21, dtype: str = "float") -> ir.Model:
    """A model from ONNX's text form, whose initializers are blank."""
    shapes = "{T}[n,4] x, {T}[4,n] z".replace("{T}", dtype)
    text = f"""<ir_version: 10, opset_import: ["" : {opset}]>
    g ({shapes}) => ({dtype}[n,k] y) <{dtype}[3,4] a.weight, {dtype}[3,4] b.weight, {dtype}[3] a.bias> {{ {body} }}"""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(_with_values(text, dtype))))
    for value in model.graph.initializers.values():
        value.const_value = None
    return model


def _with_values(text: str, dtype: str) -> str:
    for name, count in (("a.weight", 12), ("b.weight", 12), ("a.bias", 3)):
        text = text.replace(f"] {name}", f"] {name.replace('.', '_')} = {{{', '.join(['0'] * count)}}}", 1)
    return text.replace("a.weight", "a_weight").replace("b.weight", "b_weight").replace("a.bias", "a_bias")


LINEAR = "w = Transpose<perm=[1,0]>(a_weight) m = MatMul(x, w) y = Add(m, a_bias)"
GEMM = "y = Gemm<transB=1>(x, a_weight, a_bias)"
SHARED = """w = Transpose<perm=[1,0]>(a_weight) v = Transpose<perm=[1,0]>(b_weight)
    m = MatMul(x, w) o = MatMul(x, v) y = Add(m, o)"""
TWICE = "w = Transpose<perm=[1,0]>(a_weight) r = Relu(x) m = MatMul(x, w) o = MatMul(r, w) y = Add(m, o)"


def _fill(model: ir.Model, values: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
    """Attach weights by name and dtype, independently of the exporter's own way."""
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            continue
        if name not in values:  # the scales of a weight
            array: Any = row_scales(values[name.removesuffix("_scale")]).numpy()
        elif value.dtype == ir.DataType.FLOAT8E4M3FN:
            fp8 = to_codes(values[name], row_scales(values[name]))
            array = fp8.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
        else:
            array = values[name].numpy()
        value.const_value = ir.Tensor(array, name=name)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return proto


def _run(proto: onnx.ModelProto, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(array) for array in session.run(None, {k: v.numpy() for k, v in inputs.items()})]


def _ops(model: ir.Model) -> list[str]:
    return sorted(node.op_type for node in model.graph)


@pytest.mark.parametrize("body", [LINEAR, GEMM])
def test_a_linear_computes_what_fp8_leaves_of_both_sides(body: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator)
    x = 2.0 * torch.randn(5, 4, generator=generator)
    scale = activation_scale(3.0)  # some inputs saturate
    model = _graph(body)
    assert quantize_fp8(model, {"a_weight": scale}) == ("a_weight",)
    values = {"a_weight": weight, "a_bias": bias, "b_weight": torch.zeros(3, 4)}
    (y,) = _run(_fill(model, values), {"x": x, "z": torch.zeros(4, 5)})
    expected = fake_quantise(x, scale) @ fake_quantise_rows(weight).T + bias
    assert torch.allclose(y, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(y, x @ weight.T + bias, rtol=1e-3)


def test_layers_that_read_one_tensor_share_a_pair_and_the_greatest_scale() -> None:
    model = _graph(SHARED)
    assert quantize_fp8(model, {"b_weight": 0.5, "a_weight": 0.25}) == ("a_weight", "b_weight")
    ops = _ops(model)
    assert ops.count("QuantizeLinear") == 1
    assert ops.count("DequantizeLinear") == 3
    scales = [v.const_value.numpy() for n, v in model.graph.initializers.items() if n.endswith(".input_scale")]
    assert scales == [0.5]


def test_one_of_two_layers_that_read_one_tensor_may_stay_high() -> None:
    model = _graph(SHARED)
    quantize_fp8(model, {"a_weight": 0.5})
    high = next(n for n in model.graph if n.op_type == "MatMul" and n.inputs[0] is model.graph.inputs[0])
    assert high.inputs[1].producer().inputs[0].name == "b_weight"


def test_a_weight_that_is_multiplied_twice_is_stored_once() -> None:
    model = _graph(TWICE)
    quantize_fp8(model, {"a_weight": 0.5})
    assert _ops(model).count("QuantizeLinear") == 2
    assert _ops(model).count("DequantizeLinear") == 3
    assert list(model.graph.initializers).count("a_weight_scale") == 1


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "FLOAT16"), ("bfloat16", "BFLOAT16")])
def test_other_types_stay_what_they_were(dtype: str, kind: str) -> None:
    model = _graph(LINEAR, opset=23, dtype=dtype)
    quantize_fp8(model, {"a_weight": 0.3})
    values = {v.name: v.dtype.name for node in model.graph for v in node.outputs}
    assert {values[name] for name in ("m", "y", "w")} == {kind}
    assert model.graph.initializers["a_weight_scale"].dtype.name == kind
    constant = next(v for n, v in model.graph.initializers.items() if n.endswith(".input_scale"))
    assert (constant.dtype.name, constant.const_value.shape.rank()) == (kind, 0)
    assert model.graph.initializers["a_weight"].dtype.name == "FLOAT8E4M3FN"
    assert model.graph.initializers["a_weight"].const_value is None


BAD: dict[str, tuple[str, int, dict[str, float], str]] = {
    "old opset": (LINEAR, 20, {"a_weight": 1.0}, "needs ONNX opset 21"),
    "no such weight": (LINEAR, 21, {"c": 1.0}, "has no weight c"),
    "no matrix": (LINEAR, 21, {"a_bias": 1.0}, "a matrix"),
    "scale of zero": (LINEAR, 21, {"a_weight": 0.0}, "must be positive"),
    "scale that is not finite": (LINEAR, 21, {"a_weight": float("nan")}, "must be positive"),
    "unread": (LINEAR, 21, {"b_weight": 1.0}, "nothing multiplies"),
    "read by another": ("m = Mul(a_weight, a_weight) y = Transpose(m)", 21, {"a_weight": 1.0}, "is read by Mul"),
    "left of a product": ("w = Transpose<perm=[1,0]>(a_weight) y = MatMul(w, b_weight)", 21, {"a_weight": 1.0}, "more"),
    "scaled gemm": ("y = Gemm<transB=1, alpha=0.5>(x, a_weight)", 21, {"a_weight": 1.0}, "read by Gemm"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_quantised_is_refused_and_nothing_changes(case: str) -> None:
    body, opset, scales, message = BAD[case]
    model = _graph(body, opset)
    before = ir.to_proto(model).graph.node
    with pytest.raises(ExportError, match=message):
        quantize_fp8(model, scales)
    assert ir.to_proto(model).graph.node == before


@dataclass(frozen=True)
class Student:
    """A small student in torch, its traced float32 graph, inputs, and the magnitudes of its layers' inputs."""

    module: Any
    network: Network
    graph: ir.Model
    inputs: dict[str, torch.Tensor]
    amax: dict[str, float]


@pytest.fixture(scope="module")
def student(sources: Sources) -> Student:
    transformer = sources.base / "transformer"
    merged = merge(transformer, sources.adapter)
    network = flux_student_network(transformer, merged)
    module = network.reference().network  # type: ignore[attr-defined]
    inputs = network.examples(
        {"batch": 2, "image_tokens": 12, "rows": 3, "text_tokens": 5}, torch.Generator().manual_seed(3)
    )
    graph = trace(network, "float32", 21)
    blanks = [name for name, value in graph.graph.initializers.items() if value.const_value is None]
    layers = [layer_of(name) for name in select_layers(blanks, network.fp8_layers)]
    observers = {layer: Observer() for layer in layers}

    def look(layer: str) -> Any:
        return lambda _, args: observers[layer].see(args[0], False)

    hooks = [module.get_submodule(layer).register_forward_pre_hook(look(layer)) for layer in layers]
    with torch.no_grad():
        module(**inputs)
    for hook in hooks:
        hook.remove()
    return Student(module, network, graph, inputs, {layer: observers[layer].amax for layer in layers})


def _compare(student: Student, layers: list[str]) -> tuple[float, float]:
    """(error of ONNX Runtime against the simulation, error of the simulation against float32): means, relative L2."""
    amax = {layer: student.amax[layer] for layer in layers}
    model = student.graph.clone()
    quantize_fp8(model, {weight_of(layer): activation_scale(value) for layer, value in amax.items()})
    means = _run(_fill(model, student.module.state_dict()), student.inputs)[0]
    with torch.no_grad():
        plain = student.module(**student.inputs, return_dict=False)[0].means
        with fake_quantised(student.module, amax):
            simulated = student.module(**student.inputs, return_dict=False)[0].means
        again = student.module(**student.inputs, return_dict=False)[0].means
    assert torch.equal(plain, again), "the simulation must leave the module as it was"
    return float((means - simulated).norm() / simulated.norm()), float((simulated - plain).norm() / plain.norm())


@pytest.mark.parametrize(
    "layer",
    [
        "transformer_blocks.0.attn.to_v",
        "transformer_blocks.0.attn.to_out.0",
        "transformer_blocks.0.ff.net.2",
        "single_transformer_blocks.0.proj_mlp",
        "single_transformer_blocks.0.proj_out",
    ],
)
def test_a_layer_alone_is_what_the_simulation_says(student: Student, layer: str) -> None:
    """Tolerance: a twentieth of FP8's own error. What is left is single roundings that fall the other way."""
    difference, error = _compare(student, [layer])
    assert error > 1e-4
    assert difference <= error / 20.0


def test_all_layers_together_are_what_the_simulation_says(student: Student) -> None:
    """Tolerance: a third of FP8's own error. Where the two round apart, all that follows rounds apart a little more."""
    assert len(student.amax) == 17
    difference, error = _compare(student, list(student.amax))
    assert difference <= error / 3.0
    assert error < 0.2


def test_layers_are_named_and_grouped() -> None:
    assert layer_of("a.3.to_q.weight") == "a.3.to_q"
    assert weight_of("a.3.to_q") == "a.3.to_q.weight"
    assert block_of("a.3.attn.to_out.0") == "a.3"
    assert block_of("norm_out.linear") == "norm_out"


NAMES = ("a.0.to_q.weight", "a.0.to_q.bias", "a.1.to_q.weight", "a.1.ff.weight", "norm_out.weight")
DEFAULTS = ("a.*.to_q.weight", "a.*.ff.weight")


@pytest.mark.parametrize(
    ("keep_high", "left"),
    [
        ((), ("a.0.to_q.weight", "a.1.to_q.weight", "a.1.ff.weight")),
        (("a.0.*",), ("a.1.to_q.weight", "a.1.ff.weight")),
        (("*.to_q",), ("a.1.ff.weight",)),
        (("*.to_q.weight", "a.0.*"), ("a.1.ff.weight",)),
    ],
)
def test_patterns_keep_layers_high(keep_high: tuple[str, ...], left: tuple[str, ...]) -> None:
    assert select_layers(NAMES, DEFAULTS, keep_high) == left


@pytest.mark.parametrize(
    ("defaults", "keep_high", "message"),
    [
        (DEFAULTS, ("b.*",), r"--keep-high 'b.\*' matches none of the 3 layers that fp8 quantises \(a.0.to_q"),
        (DEFAULTS, ("norm_out",), "matches none"),
        (DEFAULTS, ("a.*",), "leaves no layer to quantise"),
        (("c.*",), (), "finds no layer"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(
    defaults: tuple[str, ...], keep_high: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        select_layers(NAMES, defaults, keep_high)


def test_the_simulation_refuses_what_is_no_linear(student: Student) -> None:
    with pytest.raises(ExportError, match=r"no layer x\.y"), fake_quantised(student.module, {"x.y": 1.0}):
        pass
    with (
        pytest.raises(ExportError, match="only linears"),
        fake_quantised(student.module, {"transformer_blocks.0": 1.0}),
    ):
        pass


def test_the_simulation_ends_when_the_block_fails(student: Student) -> None:
    layer = next(iter(student.amax))
    with pytest.raises(ValueError, match="stop"), fake_quantised(student.module, {layer: 1.0}):
        raise ValueError("stop")
    assert "forward" not in vars(student.module.get_submodule(layer))


def test_numbers_of_a_scale_survive_the_graph() -> None:
    model = _graph(LINEAR, opset=23, dtype="bfloat16")
    quantize_fp8(model, {"a_weight": 0.3})
    constant = next(v for n, v in model.graph.initializers.items() if n.endswith(".input_scale"))
    assert float(constant.const_value.numpy()) == float(np.float32(0.3).astype(ml_dtypes.bfloat16))
