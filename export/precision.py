"""Precisions: what each network computes in and is stored in. The policy is data; nothing else decides it.

==========  =================================================================================================
precision   networks
==========  =================================================================================================
fp32        everything in float32
fp16        on a GPU conditioner, backbone and CLIP in float16; T5, Qwen2.5-VL and the VAE decoders, which
            overflow in float16, in bfloat16. On a CPU, which has no arithmetic in float16 worth the name,
            everything is computed in float32, and matrices are stored in float16
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

STORED_WHOLE = ("*position_embedding.*", "*relative_attention_bias.*")
"""Matrices (fnmatch of state-dict names) that are stored in what is computed in, whatever the others are stored in:
tables of positions. They are small, and T5's are added to the scores of attention, where an error is absolute."""

FUSED_HEADS = range(16, 257)
"""Head sizes for which TensorRT has one kernel of 16-bit attention, on every target; found by trying."""

CPU = "cpu"
"""The target that ONNX Runtime serves; every other one is a GPU's."""


def compute_dtype(network: str, precision: Precision, target: str) -> str:
    """The floating type ("float32", "float16", "bfloat16") that a network computes in. Raises ExportError.

    network: its name in the bundle; target: what the bundle runs on. ONNX Runtime's CPU has no bfloat16 arithmetic.
    """
    if precision is Precision.BF16 and target == CPU:
        raise ExportError("--precision bf16 cannot run on a CPU: ONNX Runtime has no bfloat16 there; use fp32 or fp16")
    if precision is Precision.FP32 or target == CPU:
        return "float32"
    return "float16" if precision is Precision.FP16 and network in FLOAT16_SAFE else "bfloat16"


def stored_dtype(network: str, precision: Precision, target: str) -> str:
    """The floating type that a network's matrices are stored in, those that FP8 takes aside. Raises ExportError.

    Where it is not the type that the network computes in, the graph widens them; what else there is (vectors, and
    matrices of :data:`STORED_WHOLE`) is stored in what is computed in.
    """
    compute = compute_dtype(network, precision, target)
    return "float16" if precision is Precision.FP16 and target == CPU else compute


def opset(precision: Precision, target: str) -> int:
    """The ONNX opset: 20 in fp32 and fp16 for a CPU; 23 in fp16, bf16 and fp8 for a GPU; else 21.

    From 21 on there are FP8 types, and graphs hold no sequences, which TensorRT does not take. From 23 on attention is
    one node, of which TensorRT makes a fused kernel, though not in float32.
    """
    if target == CPU:
        return 21 if precision is Precision.FP8 else 20
    return 21 if precision is Precision.FP32 else 23
