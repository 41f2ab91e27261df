"""Weights put into a graph, inside it or beside it: the same values, in every type, taken by every reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.assembling import stored
from export.assembling.attach import attach_external, attach_inline, data_name
from export.errors import ExportError, WeightsError
from export.fp8.numbers import from_codes, row_scales, to_codes
from export.networks.base import Network
from export.weights import files as weights
from export.weights.files import TensorSet, tensor_set

IN, OUT = 48, 32
TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


@pytest.fixture
def tensors(tmp_path: Path) -> TensorSet:
    generator = torch.Generator().manual_seed(3)
    values = {
        "layer.weight": torch.randn(OUT, IN, generator=generator),
        "layer.bias": torch.randn(OUT, generator=generator),
        "gain": torch.tensor(1.5),
    }
    values["layer.weight"][5] = 0.0
    save_file(values, tmp_path / "model.safetensors")
    return tensor_set(tmp_path / "model.safetensors")


def network(tensors: TensorSet) -> Network:
    """A linear with a gain; its aliases are those of a file that names the layer otherwise."""
    return Network(
        name="linear",
        ports_in={"x": ("float32", ("batch", IN))},
        ports_out={"y": ("float32", ("batch", OUT))},
        bounds={"batch": (1, 8)},
        build=lambda _: torch.nn.Identity(),
        weights=tensors,
        reference=lambda: lambda x: [x],
        examples=lambda *_: {},
        parity_sizes=(),
        aliases=lambda name: (name, name.replace("renamed", "layer")),
    )


def blank(name: str, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def graph(compute: str = "float32", fp8: bool = False, scale: str = "float32") -> ir.Model:
    """x -> Cast -> MatMul with the transposed weight -> Add -> Mul -> Cast, every weight blank."""
    kind = TYPES[compute]
    x = blank("x", (1, IN), ir.DataType.FLOAT)
    x.shape = ir.Shape(["batch", IN])
    weight = blank("renamed.weight", (OUT, IN), ir.DataType.FLOAT8E4M3FN if fp8 else kind)
    initializers = [weight, blank("layer.bias", (OUT,), kind), blank("gain", (), kind)]
    nodes = [ir.node("Cast", [x], {"to": kind})]
    source = weight
    if fp8:
        initializers.insert(0, blank("renamed.weight_scale", (OUT,), TYPES[scale]))
        nodes.append(ir.node("DequantizeLinear", [weight, initializers[0]], {"axis": 0}))
        source = nodes[-1].outputs[0]
        if scale != compute:
            nodes.append(ir.node("Cast", [source], {"to": kind}))
            source = nodes[-1].outputs[0]
    nodes.append(ir.node("Transpose", [source], {"perm": [1, 0]}))
    nodes.append(ir.node("MatMul", [nodes[0].outputs[0], nodes[-1].outputs[0]]))
    nodes.append(ir.node("Add", [nodes[-1].outputs[0], initializers[-2]]))
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], initializers[-1]]))
    nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": ir.DataType.FLOAT}))
    y = nodes[-1].outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", OUT])
    made = ir.Graph([x], [y], nodes=nodes, initializers=initializers, opset_imports={"": 21}, name="linear")
    return ir.Model(made, ir_version=10)


def expected(tensors: TensorSet, x: torch.Tensor, compute: str, fp8: bool, scale: str) -> torch.Tensor:
    dtype, weight = getattr(torch, compute), tensors.read("layer.weight")
    if fp8:
        scales = row_scales(weight, getattr(torch, scale))
        weight = from_codes(to_codes(weight, scales), scales)
    bias, gain = (tensors.read(name).to(dtype).double() for name in ("layer.bias", "gain"))
    return (x.to(dtype).double() @ weight.to(dtype).double().T + bias) * gain


def run(model: Path | bytes, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


VARIANTS = [
    ("float32", False, ""),
    ("float16", False, ""),
    ("bfloat16", False, ""),
    ("float32", True, "float32"),
    ("float16", True, "float16"),
    ("bfloat16", True, "bfloat16"),
    ("float16", True, "float32"),
]


@pytest.mark.parametrize(("compute", "fp8", "scale"), VARIANTS)
def test_inside_and_beside_are_the_same_and_right(
    tensors: TensorSet, tmp_path: Path, compute: str, fp8: bool, scale: str
) -> None:
    inside, beside = graph(compute, fp8, scale), graph(compute, fp8, scale)
    attach_inline(inside, network(tensors))
    folder = tmp_path / "beside"
    file = attach_external(beside, network(tensors), folder)
    assert file.path == folder / data_name("linear")
    for name, value in inside.graph.initializers.items():
        other = beside.graph.initializers[name].const_value
        assert value.const_value is not None
        assert other is not None
        assert (value.const_value.dtype, value.const_value.shape) == (other.dtype, other.shape)
        assert value.const_value.tobytes() == other.tobytes()
    assert len(load_file(file.path)) == len(inside.graph.initializers)
    ir.save(beside, folder / "linear.onnx")
    onnx.checker.check_model(folder / "linear.onnx", full_check=True)
    if compute != "bfloat16":  # ONNX Runtime multiplies no bfloat16 on a CPU
        x = torch.randn(3, IN, generator=torch.Generator().manual_seed(4))
        truth = expected(tensors, x, compute, fp8, scale or compute)
        for model in (folder / "linear.onnx", ir.to_proto(inside).SerializeToString()):
            error = (run(model, x).double() - truth).norm() / truth.norm()
            assert error < (1e-6 if compute == "float32" else 1e-3)


@pytest.mark.parametrize("fp8", [False, True])
def test_tensorrt_parses_a_graph_with_its_weights_beside_it(tensors: TensorSet, tmp_path: Path, fp8: bool) -> None:
    from export.tensorrt.flavours import load

    model = graph("bfloat16", fp8, "bfloat16")
    attach_external(model, network(tensors), tmp_path / "beside")
    path = tmp_path / "beside" / "linear.onnx"
    ir.save(model, path)
    toolkit = load("rtx")
    trt = toolkit.trt
    builder = trt.Builder(toolkit.logger)
    parsed = builder.create_network(0)
    parser = trt.OnnxParser(parsed, toolkit.logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    layers = [parsed.get_layer(i) for i in range(parsed.num_layers)]
    constants = [layer.get_output(0) for layer in layers if layer.type == trt.LayerType.CONSTANT]
    wanted = trt.DataType.FP8 if fp8 else trt.DataType.BF16
    assert any(value.dtype == wanted and tuple(value.shape) == (OUT, IN) for value in constants)


def test_short_runs_give_the_same_bytes(tensors: TensorSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for chunk in (weights.CHUNK, 5 * 4 * IN):
        monkeypatch.setattr(weights, "CHUNK", chunk)
        folder = tmp_path / str(chunk)
        files.append(attach_external(graph("bfloat16", True, "bfloat16"), network(tensors), folder).sha256)
    assert len(set(files)) == 1


def test_quantising_reads_a_weight_once(tensors: TensorSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    right = TensorSet.read_rows

    def count(self: TensorSet, name: str, start: int, stop: int) -> torch.Tensor:
        read.append(name)
        return right(self, name, start, stop)

    monkeypatch.setattr(TensorSet, "read_rows", count)
    attach_external(graph("bfloat16", True, "bfloat16"), network(tensors), tmp_path / "beside")
    assert read.count("layer.weight") == 1


def test_scales_that_are_still_missing_are_computed_alone(
    tensors: TensorSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "beside"
    right, asked = stored.StoredTensors.runs, list[str]()

    def stop_at_scales(self: stored.StoredTensors, name: str) -> object:
        if name.endswith("_scale"):
            raise KeyboardInterrupt
        return right(self, name)

    def count(self: stored.StoredTensors, name: str) -> object:
        asked.append(name)
        return right(self, name)

    monkeypatch.setattr(stored.StoredTensors, "runs", stop_at_scales)
    with pytest.raises(KeyboardInterrupt):
        attach_external(graph("float32", True), network(tensors), folder)
    monkeypatch.setattr(stored.StoredTensors, "runs", count)
    attach_external(graph("float32", True), network(tensors), folder)
    assert "renamed.weight" not in asked
    assert "renamed.weight_scale" in asked
    found = load_file(folder / data_name("linear"))["renamed.weight_scale"]
    assert torch.equal(found, row_scales(tensors.read("layer.weight")))
    assert found[5] == 1.0, "a row of zeros"


def change(tensors: TensorSet, name: str, edit: Callable[[torch.Tensor], object]) -> TensorSet:
    values = {key: tensors.read(key) for key in tensors}
    edit(values[name])
    save_file(values, tensors.source)
    return tensor_set(tensors.source)


def _fill(value: float) -> Callable[[torch.Tensor], object]:
    return lambda tensor: tensor.view(-1)[:1].fill_(value)


@pytest.mark.parametrize("attach", ["inline", "external"])
@pytest.mark.parametrize(
    ("value", "compute", "message"),
    [
        (70000.0, "float16", r"layer\.weight has values beyond the range of F16"),
        (float("nan"), "float32", r"layer\.weight has values that are not finite"),
        (float("inf"), "float16", r"layer\.weight has values that are not finite"),
    ],
)
def test_what_does_not_fit_its_type_is_named(
    tensors: TensorSet, tmp_path: Path, attach: str, value: float, compute: str, message: str
) -> None:
    bad = network(change(tensors, "layer.weight", _fill(value)))
    with pytest.raises(WeightsError, match=message):
        if attach == "inline":
            attach_inline(graph(compute), bad)
        else:
            attach_external(graph(compute), bad, tmp_path / "beside")
    assert not (tmp_path / "beside" / data_name("linear")).exists()


def test_what_the_weights_do_not_have_is_refused_before_anything_is_written(tensors: TensorSet, tmp_path: Path) -> None:
    model = graph("float32", True)
    faults: list[tuple[ir.Value, str]] = [
        (blank("nowhere", (1,), ir.DataType.FLOAT), "lacks nowhere"),
        (blank("layer.bias", (2,), ir.DataType.FLOAT), r"layer\.bias has shape \[32\], \[2\] is needed"),
        (blank("layer.weight", (OUT, IN), ir.DataType.INT8), "of type INT8"),
        (blank("layer.weight", (OUT, IN), ir.DataType.FLOAT8E4M3FN), r"has no layer\.weight_scale"),
    ]
    for value, message in faults:
        model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10)
        model.graph.initializers.add(value)
        with pytest.raises(ExportError, match=message):
            attach_external(model, network(tensors), tmp_path / "beside")
    assert not (tmp_path / "beside").exists()


def test_bytes_inside_are_numpys_own(tensors: TensorSet) -> None:
    model = graph("float32")
    attach_inline(model, network(tensors))
    value = model.graph.initializers["renamed.weight"].const_value
    assert value is not None
    np.testing.assert_array_equal(value.numpy(), tensors.read("layer.weight").numpy())
