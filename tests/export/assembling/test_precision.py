"""The precision policy: what every network computes in, and at which opset."""

from __future__ import annotations

import pytest

from export.errors import ExportError
from export.precision import CPU, Precision, compute_dtype, opset

TEXT_AND_VAE = ("t5", "text", "vae_decoder")
GPUS = ("onnx", "sm80", "sm90", "rtx")


@pytest.mark.parametrize("target", [CPU, *GPUS])
def test_fp32_is_float32_throughout(target: str) -> None:
    assert {compute_dtype(name, Precision.FP32, target) for name in ("clip", "backbone", *TEXT_AND_VAE)} == {"float32"}


@pytest.mark.parametrize("target", GPUS)
def test_what_overflows_in_float16_is_bfloat16_on_a_gpu(target: str) -> None:
    assert {compute_dtype(name, Precision.FP16, target) for name in ("clip", "conditioner", "backbone")} == {"float16"}
    assert {compute_dtype(name, Precision.FP16, target) for name in TEXT_AND_VAE} == {"bfloat16"}
    for precision in (Precision.BF16, Precision.FP8):
        assert {compute_dtype(name, precision, target) for name in ("clip", "backbone", *TEXT_AND_VAE)} == {"bfloat16"}


def test_a_cpu_has_no_bfloat16() -> None:
    assert compute_dtype("backbone", Precision.FP16, CPU) == "float16"
    assert {compute_dtype(name, Precision.FP16, CPU) for name in TEXT_AND_VAE} == {"float32"}
    assert {compute_dtype(name, Precision.FP8, CPU) for name in ("clip", "backbone", *TEXT_AND_VAE)} == {"float32"}
    with pytest.raises(ExportError, match="bf16 cannot run on a CPU"):
        compute_dtype("backbone", Precision.BF16, CPU)


def test_opsets() -> None:
    assert [opset(precision, CPU) for precision in (Precision.FP32, Precision.FP16, Precision.FP8)] == [20, 21, 21]
    for target in GPUS:
        assert [opset(precision, target) for precision in Precision] == [21, 23, 23, 23]
