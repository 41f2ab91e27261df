"""FP8 attention: the pass on Attention nodes, what is watched, and the simulation."""

from __future__ import annotations

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import checker, parser
from torch.nn.functional import scaled_dot_product_attention

from export.errors import ExportError
from export.fp8.attention import SOFTMAX_SCALE, Watch, fake_attention, watched
from export.fp8.numbers import activation_scale, fake_quantise
from export.passes.precision.quantize_attention import quantize_attention

BOUNDS = ((6.0, 5.0, 4.0), (4.0, 5.0, 6.0))


def _model(dtype: str = "float") -> ir.Model:
    """Two attentions in a row: the second takes the first one's result as its query."""
    port = f"{dtype}[b,2,t,8]"
    text = f"""<ir_version: 10, opset_import: ["" : 23]> g ({port} q, {port} k, {port} v) => ({port} y)
    <{port} x> {{ x = Attention(q, k, v) y = Attention(x, k, v) }}"""
    return ir.from_proto(parser.parse_model(text))


def _tensors(tokens: int = 5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 2, tokens, 8, generator=generator) for _ in range(3))


def _fake(tensors: tuple[torch.Tensor, ...], bounds: tuple[float, ...]) -> list[torch.Tensor]:
    return [fake_quantise(tensor, activation_scale(bound)) for tensor, bound in zip(tensors, bounds, strict=True)]


def test_the_pass_puts_query_key_and_value_through_fp8() -> None:
    model = _model()
    assert quantize_attention(model, BOUNDS) == 2
    proto = ir.to_proto(model)
    checker.check_model(proto)
    assert [node.op_type for node in model.graph].count("QuantizeLinear") == 6
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    q, k, v = _tensors()
    (found,) = session.run(None, {"q": q.numpy(), "k": k.numpy(), "v": v.numpy()})
    x = scaled_dot_product_attention(*_fake((q, k, v), BOUNDS[0]))
    expected = scaled_dot_product_attention(*_fake((x, k, v), BOUNDS[1]))
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


def test_scales_have_the_graphs_type() -> None:
    model = _model("bfloat16")
    quantize_attention(model, BOUNDS)
    scales = [value for name, value in model.graph.initializers.items() if name.endswith("_scale")]
    assert {value.dtype for value in scales} == {ir.DataType.BFLOAT16}
    assert model.graph.outputs[0].dtype == ir.DataType.BFLOAT16


@pytest.mark.parametrize(("bounds", "message"), [(BOUNDS[:1], "knows 1 attentions, the graph has 2"), ((), "knows 0")])
def test_a_calibration_of_other_attentions_is_refused(
    bounds: tuple[tuple[float, float, float], ...], message: str
) -> None:
    model = _model()
    with pytest.raises(ExportError, match=message):
        quantize_attention(model, bounds)
    assert len(list(model.graph)) == 2


def test_a_graph_without_attention_is_refused() -> None:
    model = ir.from_proto(
        parser.parse_model('<ir_version: 10, opset_import: ["" : 21]> g (float[n] x) => (float[n] y) { y = Relu(x) }')
    )
    with pytest.raises(ExportError, match="from opset 23 on"):
        quantize_attention(model, BOUNDS)


def test_calls_are_watched_in_their_order() -> None:
    q, k, v = _tensors()
    watch = Watch()
    with watched(watch, histogram=False):
        for factor in (1.0, 2.0):
            watch.restart()
            x = scaled_dot_product_attention(factor * q, k, value=v)
            scaled_dot_product_attention(x, key=k, value=v, attn_mask=None)
    scaled_dot_product_attention(9.0 * q, k, v)  # no longer watched
    assert set(watch.observers) == {f"{call}.{side}" for call in (0, 1) for side in ("query", "key", "value")}
    assert watch.observers["0.query"].amax == pytest.approx(2.0 * float(q.abs().max()))
    assert watch.observers["1.value"].amax == pytest.approx(float(v.abs().max()))


@pytest.mark.parametrize("masked", [False, True])
def test_the_simulation_quantises_all_that_is_multiplied(masked: bool) -> None:
    q, k, v = _tensors()
    mask = torch.tensor([True, True, True, False, True]).expand(2, 1, 5, 5) if masked else None
    with fake_attention(BOUNDS):
        found = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        scaled_dot_product_attention(q, k, v)
        again = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    a, b, c = _fake((q, k, v), BOUNDS[0])
    scores = a @ b.transpose(-1, -2) / 8**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    expected = fake_quantise(scores.softmax(-1), SOFTMAX_SCALE) @ c
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(found, again)
    plain = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert 1e-3 < float((found - plain).norm() / plain.norm()) < 0.15
