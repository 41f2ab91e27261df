"""Precisions: what each network computes in, and what stays high. The policy is data; nothing else decides it.

==========  =================================================================================================
precision   networks
==========  =================================================================================================
fp32        everything in float32
fp16        conditioner, backbone and CLIP in float16; T5, Qwen2.5-VL and the VAE decoders, which overflow in
            float16, in bfloat16 (float32 where the target is a CPU)
bf16        everything in bfloat16
fp8         the backbone's large linears in FP8 (E4M3); the conditioner's modulation and the MLPs of T5 and Qwen2.5-VL
            stored in FP8; all arithmetic else in bfloat16 (float32 where the target is a CPU)
==========  =================================================================================================

Whatever the precision: ports, rotary angles, log-softmax and the solver are float32; norms and softmax accumulate in
float32; under fp8, embeddings, ``norm_out`` and the momentum head are not quantised.
"""

from __future__ import annotations

from enum import StrEnum

from export.errors import ExportError


class Precision(StrEnum):
    """What a bundle's weights and arithmetic are, by the name that users type."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"


FLOAT16_SAFE = frozenset({"clip", "conditioner", "backbone"})
"""Networks whose activations stay within float16's range."""

FUSED_HEADS = range(16, 257)
"""Head sizes for which TensorRT has one kernel of 16-bit attention, on every target; found by trying."""

CPU = "cpu"
"""The target that ONNX Runtime serves; every other one is a GPU's."""


def compute_dtype(network: str, precision: Precision, target: str) -> str:
    """The floating type ("float32", "float16", "bfloat16") that a network computes in. Raises ExportError.

    network: its name in the bundle; target: what the bundle runs on. ONNX Runtime's CPU has no bfloat16 arithmetic.
    """
    if precision is Precision.FP32:
        return "float32"
    if precision is Precision.FP16 and network in FLOAT16_SAFE:
        return "float16"
    if target != CPU:
        return "bfloat16"
    if precision is Precision.BF16:
        raise ExportError("--precision bf16 cannot run on a CPU: ONNX Runtime has no bfloat16 there; use fp32 or fp16")
    return "float32"


def opset(precision: Precision, target: str) -> int:
    """The ONNX opset: 20 in fp32 for a CPU; 23 in fp16, bf16 and fp8 for a GPU; else 21.

    From 21 on there are FP8 types, and graphs hold no sequences, which TensorRT does not take. From 23 on attention is
    one node, of which TensorRT makes a fused kernel, though not in float32.
    """
    if target == CPU:
        return 20 if precision is Precision.FP32 else 21
    return 21 if precision is Precision.FP32 else 23
