"""FP8 numbers against two independent implementations: ml_dtypes' rounding and ONNX Runtime's operators."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper

from export.fp8.numbers import (
    FP8_MAX,
    activation_scale,
    fake_quantise,
    fake_quantise_rows,
    from_codes,
    row_scales,
    to_codes,
)

magnitudes = st.floats(-1e6, 1e6, width=32)
matrices = st.integers(1, 6).flatmap(
    lambda columns: st.lists(st.lists(magnitudes, min_size=columns, max_size=columns), min_size=1, max_size=6)
)


@functools.cache
def _session(axis: int | None) -> onnxruntime.InferenceSession:
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=T.FLOAT8E4M3FN, **attributes),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"], **attributes),
    ]
    shape, scales = ["n", "m"], [] if axis is None else ["n"]
    inputs = [helper.make_tensor_value_info(n, T.FLOAT, s) for n, s in (("x", shape), ("s", scales))]
    outputs = [helper.make_tensor_value_info("y", T.FLOAT, shape)]
    model = helper.make_model(
        helper.make_graph(nodes, "qdq", inputs, outputs), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_rows_agree_with_ml_dtypes_and_onnx_runtime(values: list[list[float]]) -> None:
    rows = torch.tensor(values)
    scales = row_scales(rows)
    quantised = to_codes(rows, scales)
    ratio = np.clip(rows.numpy() / scales.numpy()[:, None], -FP8_MAX, FP8_MAX)
    expected = ratio.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    assert np.array_equal(quantised.view(torch.uint8).numpy(), expected)
    (there,) = _session(0).run(None, {"x": rows.numpy(), "s": scales.numpy()})
    assert np.array_equal(from_codes(quantised, scales).numpy(), there)
    assert torch.equal(fake_quantise_rows(rows), from_codes(quantised, scales))


@given(matrices, st.floats(np.float32(1e-3), np.float32(1e3), width=32))
@settings(max_examples=60, deadline=None)
def test_activations_agree_with_onnx_runtime_beyond_the_range_too(values: list[list[float]], scale: float) -> None:
    x = torch.tensor(values)
    (there,) = _session(None).run(None, {"x": x.numpy(), "s": np.array(scale, np.float32)})
    assert np.array_equal(fake_quantise(x, scale).numpy(), there)


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_a_row_loses_a_sixteenth_of_each_value_at_most(values: list[list[float]]) -> None:
    rows = torch.tensor(values)
    kept, amax = fake_quantise_rows(rows), rows.abs().amax(dim=1, keepdim=True)
    floor = amax / FP8_MAX * 2.0**-10 + 1e-37  # half of the format's least subnormal, and of the least scale
    assert bool(((kept - rows).abs() <= rows.abs() / 16.0 * (1 + 1e-6) + floor).all())


def test_a_zero_row_has_scale_one_and_stays_zero() -> None:
    rows = torch.tensor([[0.0, 0.0], [448.0, -1.0]])
    assert row_scales(rows).tolist() == [1.0, 1.0]
    assert fake_quantise_rows(rows)[0].tolist() == [0.0, 0.0]
    assert row_scales(torch.empty(3, 0)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_are_stored_in_the_computing_type_and_never_zero(dtype: torch.dtype) -> None:
    rows = torch.tensor([[1.0, 0.3], [1e-12, 0.0], [0.0, 0.0]])
    scales = row_scales(rows, dtype)
    assert scales.dtype == dtype
    assert float(scales.min()) >= torch.finfo(dtype).tiny
    assert float(scales[2]) == 1.0
    kept = from_codes(to_codes(rows, scales), scales)
    assert torch.allclose(kept[0], rows[0], rtol=1 / 16)
    assert bool(kept.isfinite().all())


def test_weights_of_other_ranks_and_types() -> None:
    rows = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    scales = row_scales(rows)
    assert scales.shape == (4,)
    assert to_codes(rows, scales).dtype == torch.float8_e4m3fn
    assert torch.allclose(fake_quantise_rows(rows), rows.float(), rtol=1 / 16, atol=1e-4)


def test_values_that_are_not_finite_show_in_the_scale() -> None:
    assert row_scales(torch.tensor([[1.0, float("nan")]])).isnan().all()
    assert row_scales(torch.tensor([[1.0, float("inf")]])).isinf().all()


def test_the_scale_of_an_activation() -> None:
    assert activation_scale(896.0) == 2.0
    assert activation_scale(0.0) == 1.0
