"""What a machine can do at best. A CPU is measured; a GPU is known by name from NVIDIA's sheets, else by its clocks.

Operations of a GPU are dense ones (sheets often show twice as many, "with sparsity"), sums in float32, at the boost
clock.
"""

from __future__ import annotations

import timeit
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from engines.schema import Network, Port
from runtime.bench.gpu import Gpu
from runtime.bench.roofline import Peak
from runtime.errors import BackendError
from runtime.hosts.onnx_network import OnnxRuntimeNetwork

Float32 = Literal["tf32", "float32"]
"""What float32 products are computed in: TF32 (10 bits of mantissa), as TensorRT may, or float32 itself."""

_MATRIX = 2048
_COPY_BYTES = 256 << 20
_TYPES = ("float32", "tf32", "float16", "bfloat16", "float8")

_H100_SXM = (66.9, 494.7, 989.4, 989.4, 1978.9)
_H100_NVL = (60.0, 417.5, 835.5, 835.5, 1670.5)
_SHEETS: Mapping[str, tuple[Sequence[float], float, str]] = {
    # Name, as the driver says it: (10^12 operations a second by _TYPES, 10^9 bytes a second, sheet).
    "NVIDIA B200": ((75.0, 1125.0, 2250.0, 2250.0, 4500.0), 8000.0, "HGX B200 data sheet"),
    "NVIDIA H200": (_H100_SXM, 4800.0, "H200 data sheet, SXM"),
    "NVIDIA H200 NVL": (_H100_NVL, 4800.0, "H200 data sheet, NVL"),
    "NVIDIA H100 80GB HBM3": (_H100_SXM, 3352.0, "H100 data sheet, SXM"),
    "NVIDIA H100 NVL": (_H100_NVL, 3938.0, "H100 data sheet, NVL"),
    "NVIDIA H100 PCIe": ((51.2, 378.0, 756.0, 756.0, 1513.0), 2039.0, "H100 data sheet, PCIe"),
    "NVIDIA A100-SXM4-80GB": ((19.5, 156.0, 312.0, 312.0), 2039.0, "A100 data sheet, SXM 80 GB"),
    "NVIDIA A100-SXM4-40GB": ((19.5, 156.0, 312.0, 312.0), 1555.0, "A100 data sheet, SXM 40 GB"),
    "NVIDIA A100 80GB PCIe": ((19.5, 156.0, 312.0, 312.0), 1935.0, "A100 data sheet, PCIe 80 GB"),
    "NVIDIA A100-PCIE-40GB": ((19.5, 156.0, 312.0, 312.0), 1555.0, "A100 data sheet, PCIe 40 GB"),
    "NVIDIA L40S": ((91.6, 183.0, 362.0, 362.0, 733.0), 864.0, "L40S data sheet"),
    "NVIDIA L4": ((30.3, 60.0, 121.0, 121.0, 242.5), 300.0, "L4 data sheet"),
    "NVIDIA A10": ((31.2, 62.5, 125.0, 125.0), 600.0, "A10 data sheet"),
    "NVIDIA GeForce RTX 5090": ((104.8, 104.8, 209.5, 209.5, 419.0), 1792.0, "RTX Blackwell architecture paper"),
    "NVIDIA GeForce RTX 4090": ((82.6, 82.6, 165.2, 165.2, 330.3), 1008.0, "Ada architecture paper"),
    "NVIDIA GeForce RTX 3090": ((35.6, 35.6, 71.0, 71.0), 936.0, "GA102 architecture paper"),
}
_RATES: Mapping[str, Sequence[int]] = {
    # Operations of a multiprocessor a clock, by _TYPES, of the fullest chips of a capability (GeForce has half of it).
    "sm80": (128, 1024, 2048, 2048),
    "sm86": (256, 512, 1024, 1024),
    "sm89": (256, 512, 1024, 1024, 2048),
    "sm90": (256, 2048, 4096, 4096, 8192),
    "sm100": (256, 4096, 8192, 8192, 16384),
    "sm120": (256, 512, 1024, 1024, 2048),
}


def gpu_peak(gpu: Gpu, float32: Float32 = "tf32") -> Peak:
    """The peak of a GPU for the types it computes. float32: what products in float32 are computed in.

    Raises BackendError where neither its name nor its capability is known.
    """
    info = gpu.info
    if info.name in _SHEETS:
        teras, gigas, sheet = _SHEETS[info.name]
        speeds, bandwidth = [tera * 1e12 for tera in teras], gigas * 1e9
        source = f"{info.name}: {sheet}"
    elif info.capability in _RATES:
        speeds = [rate * info.multiprocessors * gpu.clock for rate in _RATES[info.capability]]
        bandwidth = gpu.bandwidth
        source = (
            f"{info.name}: {info.multiprocessors} multiprocessors of {info.capability} at {gpu.clock / 1e6:.0f} MHz, "
            "memory as the driver says"
        )
    else:
        raise BackendError(
            f"the peak of {info.name} ({info.capability}) is not known; known are {', '.join(_RATES)}: "
            "leave --roofline out"
        )
    operations = dict(zip(_TYPES, speeds, strict=False))
    operations["float32"] = operations[float32]
    del operations["tf32"]
    named = ", ".join(f"{kind} {speed / 1e12:.0f}" for kind, speed in operations.items())
    mode = " (as TF32)" if float32 == "tf32" else ""
    return Peak(operations, bandwidth, f"{source}; TFLOP/s: {named}{mode}; {bandwidth / 1e9:.0f} GB/s")


def cpu_peak(types: Sequence[str], threads: int) -> Peak:
    """What this CPU reaches at best of five: a float32 matrix product, and a copy that no cache holds.

    types: those that the networks are stored in; a CPU computes all of them in float32. threads: of the product, which
    runs where the networks run, in ONNX Runtime. Raises BackendError where the package onnx is not installed.
    """
    a, b = (np.random.default_rng(seed).random((_MATRIX, _MATRIX), dtype=np.float32) for seed in (0, 1))
    ports = [Port(name, "float32", [_MATRIX, _MATRIX]) for name in "abc"]
    spec = Network(file="product.onnx", inputs=ports[:2], outputs=ports[2:])
    network = OnnxRuntimeNetwork("product", _product_model(), spec, threads)
    product = min(timeit.repeat(lambda: network.run({"a": a, "b": b}), number=1, repeat=5))
    source, target = np.ones(_COPY_BYTES // 4, np.float32), np.zeros(_COPY_BYTES // 4, np.float32)
    copy = min(timeit.repeat(lambda: np.copyto(target, source), number=1, repeat=5))
    speed = 2.0 * _MATRIX**3 / product
    return Peak(
        operations=dict.fromkeys(types, speed),
        bandwidth=2.0 * _COPY_BYTES / copy,
        source=f"measured: {speed / 1e9:.0f} GFLOP/s in a product of {_MATRIX} x {_MATRIX} on {threads} threads, "
        f"{2.0 * _COPY_BYTES / copy / 1e9:.1f} GB/s in a copy of {_COPY_BYTES >> 20} MiB",
    )


def _product_model() -> bytes:
    """c = a b, as an ONNX model."""
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise BackendError("measuring the peak needs the package onnx: pip install 'arcflow[export]'") from error
    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [_MATRIX, _MATRIX]) for name in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())
