"""Parity: its measure, its limits, and that it notices one weight that is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from engines.bundle import open_bundle
from engines.schema import NETWORKS
from export.assembling.attach import attach_inline
from export.assembling.graph import trace
from export.assembling.parity import HALVED_LIMITS, LIMITS, check_parity, parity_table, relative_error
from export.errors import ExportError, ParityError
from export.networks.t5 import t5_network
from export.passes.precision.emulate_bfloat16 import emulate_bfloat16
from export.precision import FLOAT16_SAFE
from tests.export.conftest import Built, Sources


def test_limits() -> None:
    assert LIMITS["fp32"] == 1e-4
    assert LIMITS["fp32"] < LIMITS["fp16"] < LIMITS["bf16"] < LIMITS["fp8"] <= 0.15
    assert set(HALVED_LIMITS) == {name for networks in NETWORKS.values() for name in networks}
    # Of what may compute in float16 on a GPU, tighter than that.
    assert all(LIMITS["fp32"] < HALVED_LIMITS[name] < LIMITS["fp16"] for name in FLOAT16_SAFE)


def test_relative_error() -> None:
    truth = torch.tensor([3.0, 4.0])
    assert relative_error(truth, truth) == 0.0
    assert relative_error(torch.tensor([3.0, 4.5]), truth) == pytest.approx(0.1)
    assert relative_error(torch.tensor([0.0, 0.5]), torch.zeros(2)) == 0.5
    assert relative_error(torch.zeros(0), torch.zeros(0)) == 0.0
    assert math.isinf(relative_error(torch.tensor([math.nan, 4.0]), truth))
    assert math.isinf(relative_error(torch.zeros(3), truth))


def test_every_network_was_measured_at_three_shapes_and_holds(built: Built) -> None:
    parity = open_bundle(built.bundle).manifest.parity
    for name in ("clip", "t5", "conditioner", "backbone", "vae_decoder"):
        results = [result for result in parity if result.network == name]
        assert len({tuple(sorted(result.shape.items())) for result in results}) == 3
        assert all(0 < result.relative_error <= result.limit == LIMITS["fp32"] for result in results)
    assert parity_table(parity).row_count == 15


@pytest.mark.parametrize("value", [0.01, math.nan])
def test_one_wrong_weight_is_noticed(built: Built, value: float) -> None:
    network = t5_network(built.sources.base / "text_encoder_2")
    model = onnx.load(built.bundle / "t5.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.endswith("wi_0.weight"))
    array = numpy_helper.to_array(tensor).copy()
    array[0] += np.float32(value)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    with pytest.raises(ParityError, match="t5 differs from the original by"):
        check_parity(network, model.SerializeToString(), "fp32")


def test_external_weights_are_read_from_beside_the_model(built: Built, tmp_path: Path) -> None:
    network = t5_network(built.sources.base / "text_encoder_2")
    inside = built.bundle / "t5.onnx"
    ir.save(ir.load(inside), tmp_path / "t5.onnx", external_data="t5.data", size_threshold_bytes=1000)
    assert (tmp_path / "t5.data").stat().st_size > (tmp_path / "t5.onnx").stat().st_size
    assert check_parity(network, tmp_path / "t5.onnx", "fp32") == check_parity(network, inside.read_bytes(), "fp32")


ROUNDING = """<ir_version: 10, opset_import: ["" : 21]>
g (float[8, 16] a, float[8, 16] b) => (float[8, 16] y) {
    x = Cast <to = 16> (a)
    w = Cast <to = 16> (b)
    product = Mul (x, w)
    moved = Transpose <perm = [1, 0]> (product)
    back = Transpose <perm = [1, 0]> (moved)
    sum = Add (back, x)
    root = Exp (sum)
    y = Cast <to = 1> (root)
}"""


def test_emulated_arithmetic_is_torchs_to_the_bit() -> None:
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(ROUNDING))
    model = ir.from_proto(proto)
    assert emulate_bfloat16(model) == 5  # Two casts, product, sum, exponential; moves round nothing.
    a, b = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"a": a.numpy(), "b": b.numpy()})[0])
    x, w = a.bfloat16(), b.bfloat16()
    assert torch.equal(found, (x * w + x).exp().float())
    assert not torch.equal(found, (a * b + a).exp())


def test_emulation_is_as_far_from_float32_as_torchs_own_bfloat16_is(sources: Sources) -> None:
    """A network in torch's bfloat16, its emulated graph, and float32: no two are nearer than rounding lets them be."""
    network = t5_network(sources.base / "text_encoder_2")
    model = trace(network, "bfloat16", 23)
    assert sum(node.op_type == "RMSNormalization" for node in model.graph) == 3
    attach_inline(model, network)
    module = network.build(torch.bfloat16).eval()
    weights = {name: network.weights.read(network.weight_key(name)) for name in module.network.state_dict()}
    module.network.load_state_dict(weights)
    emulated = ir.from_proto(ir.to_proto(model))
    assert emulate_bfloat16(emulated) > 20
    session = onnxruntime.InferenceSession(
        ir.to_proto(emulated).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    inputs = network.examples({"batch": 4, "text_tokens": 50}, torch.Generator().manual_seed(0))
    with torch.no_grad():
        truth, native = network.reference()(**inputs)[0], module(**inputs)[0]
    found = torch.from_numpy(session.run(None, {"input_ids": inputs["input_ids"].numpy()})[0])
    own, native_error = relative_error(found, truth), relative_error(native, truth)
    assert 1e-3 < native_error < LIMITS["bf16"]
    assert 0.7 * native_error < own < 1.4 * native_error
    assert relative_error(found, native) < 1.5 * native_error


def test_bfloat16_ports_and_subgraphs_are_not_emulated() -> None:
    ports = """<ir_version: 10, opset_import: ["" : 21]> g (bfloat16[2] x) => (bfloat16[2] y) { y = Neg (x) }"""
    with pytest.raises(ExportError, match="its ports must be float32"):
        emulate_bfloat16(ir.from_onnx_text(ports))
    branches = """<ir_version: 10, opset_import: ["" : 21]> g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <
            then_branch = a () => (float[2] p) { p = Neg (x) },
            else_branch = b () => (float[2] q) { q = Abs (x) }
        >
    }"""
    with pytest.raises(ExportError, match="subgraphs"):
        emulate_bfloat16(ir.from_onnx_text(branches))
