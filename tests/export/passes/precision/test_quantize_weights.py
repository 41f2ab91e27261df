"""Weights that are FP8 in the file alone: rows that were rounded, multiplied as before."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from export.assembling.attach import attach_inline
from export.assembling.graph import trace
from export.errors import ExportError
from export.fp8.numbers import fake_quantise_rows
from export.fp8.policy import own_patterns, select_weights
from export.fp8.simulation import fake_quantised
from export.networks.base import Network
from export.networks.flux_conditioner import FP8_WEIGHTS, flux_conditioner_network
from export.networks.qwen_text import qwen_text_network
from export.networks.t5 import t5_network
from export.passes.precision.quantize_weights import quantize_weights
from export.weights.merge import merge
from tests.export.pipelines import Sources
from tests.export.qwen_export import Exported


@pytest.fixture(scope="module")
def conditioner(sources: Sources) -> Network:
    transformer = sources.base / "transformer"
    return flux_conditioner_network(transformer, merge(transformer, sources.adapter))


def _run(model: ir.Model, inputs: dict[str, torch.Tensor]) -> list[NDArray[np.float32]]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[NDArray[np.float32]] = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return found


def _error(found: Any, wanted: Any) -> float:
    return max(float(np.linalg.norm(a - np.asarray(b)) / np.linalg.norm(b)) for a, b in zip(found, wanted, strict=True))


def test_they_are_the_rows_that_were_rounded(conditioner: Network) -> None:
    """Of a graph, and of the simulation in torch that the gate runs."""
    whole, model = trace(conditioner, opset=21), trace(conditioner, opset=21)
    names = quantize_weights(model, FP8_WEIGHTS)
    assert len(names) == 3
    for graph in (whole, model):
        attach_inline(graph, conditioner)
    for name in names:
        value = whole.graph.initializers[name]
        rounded = fake_quantise_rows(torch.from_numpy(value.const_value.numpy().copy()))  # type: ignore[union-attr]
        value.const_value = ir.tensor(rounded.numpy(), name=name)
        assert model.graph.initializers[name].dtype == ir.DataType.FLOAT8E4M3FN
    module: Any = conditioner.reference()
    for sizes in conditioner.parity_sizes:
        inputs = conditioner.examples(sizes, torch.Generator().manual_seed(0))
        found = _run(model, inputs)
        assert _error(found, _run(whole, inputs)) <= 1e-6
        with torch.no_grad(), fake_quantised(module.network, {n.removesuffix(".weight"): None for n in names}):
            simulated = module(**inputs)
        with torch.no_grad():
            plain = module(**inputs)
        assert _error(found, simulated) <= 1e-4
        assert 1e-3 < _error(found, plain) < 0.1


def test_what_is_kept_high_stays(conditioner: Network) -> None:
    model = trace(conditioner, opset=21)
    found = quantize_weights(model, FP8_WEIGHTS, ["transformer_blocks.*"])
    assert found == ("single_transformer_blocks.0.norm.linear.weight",)
    assert not quantize_weights(trace(conditioner, opset=21), FP8_WEIGHTS, ["*"])


def test_only_matrices_can_be_fp8(conditioner: Network) -> None:
    model = trace(conditioner, opset=21)
    before = ir.to_proto(model).graph.node
    with pytest.raises(ExportError, match=r"norm1\.linear\.bias is FLOAT .*a matrix of FLOAT"):
        quantize_weights(model, ["transformer_blocks.0.norm1.linear.*"])
    assert ir.to_proto(model).graph.node == before


def test_of_text_encoders_the_mlps_are_stored_and_nothing_else(sources: Sources, exported_qwen: Exported) -> None:
    t5 = t5_network(sources.base / "text_encoder_2")
    text = qwen_text_network(exported_qwen.sources.base / "text_encoder")
    for network in (t5, text):
        model = trace(network, "bfloat16", 23)
        matrices = {
            str(value.name)
            for value in model.graph.initializers.values()
            if value.const_value is None and value.shape is not None and value.shape.rank() == 2
        }
        stored = set(quantize_weights(model, network.fp8_weights))
        assert stored == {name for name in matrices if ".mlp." in name or ".DenseReluDense." in name}
        # What headers tell before the graph is there.
        assert len(select_weights(network.weights, network.fp8_weights)) == len(stored)


def test_a_network_s_name_in_front_of_a_pattern() -> None:
    patterns = ("t5", "conditioner.transformer_blocks.0.*", "single_transformer_blocks.*")
    assert own_patterns("t5", patterns) == ("*",)
    assert own_patterns("conditioner", patterns) == ("transformer_blocks.0.*",)
    assert own_patterns("backbone", patterns) == ()


def test_a_pattern_that_no_stored_weight_has_is_rejected() -> None:
    with pytest.raises(ExportError, match=r"--keep-high 'encoder\.\*' matches none of the 1 layers"):
        select_weights(["model.layers.0.mlp.up_proj.weight"], ["layers.*.mlp.*"], ["encoder.*"])
