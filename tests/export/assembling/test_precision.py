"""The precision policy: what every network computes in, and at which opset."""

from __future__ import annotations

import pytest

from export.errors import ExportError
from export.precision import CPU, Precision, compute_dtype, opset, stored_dtype

TEXT_AND_VAE = ("t5", "text", "vae_decoder")
NETWORKS = ("clip", "conditioner", "backbone", *TEXT_AND_VAE)
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
    for decide in (compute_dtype, stored_dtype):
        with pytest.raises(ExportError, match="bf16 cannot run on a CPU"):
            decide("backbone", Precision.BF16, CPU)


def test_a_cpu_computes_in_float32_and_fp16_is_what_it_stores() -> None:
    for precision, stored in ((Precision.FP32, "float32"), (Precision.FP16, "float16"), (Precision.FP8, "float32")):
        for name in NETWORKS:
            assert compute_dtype(name, precision, CPU) == "float32"
            assert stored_dtype(name, precision, CPU) == stored


@pytest.mark.parametrize("target", GPUS)
def test_a_gpu_s_matrices_are_stored_in_what_they_are_multiplied_in(target: str) -> None:
    for precision in Precision:
        for name in NETWORKS:
            assert stored_dtype(name, precision, target) == compute_dtype(name, precision, target)


def test_opsets() -> None:
    assert [opset(precision, CPU) for precision in (Precision.FP32, Precision.FP16, Precision.FP8)] == [20, 20, 21]
    for target in GPUS:
        assert [opset(precision, target) for precision in Precision] == [21, 23, 23, 23]
