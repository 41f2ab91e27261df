"""What is there: device, driver, versions; and the rates it reaches at best, which the other parts are held to."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gpu.catalogue import Options
from gpu.device import open_gpu, torch_device
from gpu.records import Printer, SkipPartError, guarded
from gpu.timing import in_torch

PACKAGES = (
    "torch", "triton", "numpy", "cuda-bindings", "cuda-core", "nvidia-cuda-nvrtc", "cupy-cuda13x", "onnx",
    "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu13", "tensorrt-rtx-cu13-bindings",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13", "nvidia-cudnn-cu13",
    "nvidia-cudnn-frontend", "diffusers", "transformers", "accelerate", "peft", "safetensors",
    "tokenizers", "msgspec",
)  # fmt: skip
_QUERIES = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.mem", "power.limit", "temperature.gpu")
_COPY = 2 << 30
_SIDE = 8192


def run(printer: Printer, options: Options) -> None:
    """Say what is there, then measure the ceilings."""
    printer("versions", _versions_line(), python=platform.python_version(), packages=versions(), cpus=os.cpu_count())
    for what, work in (
        ("nvidia-smi", lambda: _smi(printer)),
        ("device", lambda: _device(printer)),
        ("torch", lambda: _torch(printer, options)),
        ("ceilings", lambda: _ceilings(printer, options)),
    ):
        guarded(printer, what, work)


def versions() -> dict[str, str]:
    """Installed packages of interest."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _versions_line() -> str:
    found = versions()
    shown = [f"{name} {found[name]}" for name in ("torch", "cuda-bindings", "onnxruntime") if name in found]
    return f"Python {platform.python_version()}, " + ", ".join(shown)


def _smi(printer: Printer) -> None:
    """Only asks: nothing of the card is set."""
    command = shutil.which("nvidia-smi")
    if command is None:
        raise SkipPartError("no nvidia-smi here")
    arguments = [command, f"--query-gpu={','.join(_QUERIES)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")] if done.stdout else []
    if len(values) != len(_QUERIES):
        raise SkipPartError(f"nvidia-smi said: {(done.stdout + done.stderr).strip()[:200]}")
    printer("nvidia-smi", f"{values[0]}, driver {values[1]}", answers=dict(zip(_QUERIES, values, strict=True)))


def _device(printer: Printer) -> None:
    """The device as the runtime opens it: its kernels are compiled on the way."""
    device = open_gpu()
    info = device.info
    fields = {name: getattr(info, name) for name in info.__dataclass_fields__}
    device.close()
    printer("runtime's device", f"{info.name}, {info.capability}, {info.memory >> 20} MiB", **fields)


def _torch(printer: Printer, options: Options) -> None:
    where = torch_device(options)
    import torch

    if where == "cpu":
        raise SkipPartError("torch finds no GPU here")
    properties = torch.cuda.get_device_properties(0)
    backends = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "cudnn", "math")}
    printer(
        "torch's device",
        f"{properties.name}, {properties.multi_processor_count} SMs, CUDA {torch.version.cuda}",
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        memory=properties.total_memory,
        attention=backends,
    )


def _ceilings(printer: Printer, options: Options) -> None:
    """A large copy, a large read, large matrix products, on random data."""
    where = torch_device(options)
    import torch

    small = options.smoke
    size, side = (1 << 20, 64) if options.rehearse else (64 << 20, 1024) if small else (_COPY, _SIDE)
    rounds = 3 if small else 20
    source = torch.empty(size // 4, device=where).normal_()
    copy = in_torch([partial(torch.empty_like(source).copy_, source)], rounds, "torch")
    printer("copy", f"{2 * size / copy.median / 1e9:.0f} GB/s read and written", bytes=size, **copy.figures())
    read = in_torch([source.sum], rounds, "torch")
    printer("read", f"{size / read.median / 1e9:.0f} GB/s in a sum", bytes=size, **read.figures())
    for name, make in (("bf16", _bf16_product), ("fp8", _fp8_product)):

        def measure(name: str = name, make: Callable[[int, str], Callable[[], Any]] = make) -> None:
            timing = in_torch([make(side, where)], rounds, "torch")
            rate = 2 * side**3 / timing.median
            printer(f"product {name} {side}", f"{rate / 1e12:.0f} TFLOP/s", rate=rate, **timing.figures())

        guarded(printer, f"product {name}", measure)


def _bf16_product(side: int, where: str) -> Callable[[], Any]:
    import torch

    a, b = (torch.randn(side, side, device=where, dtype=torch.bfloat16) for _ in range(2))
    return lambda: a @ b


def _fp8_product(side: int, where: str) -> Callable[[], Any]:
    """One scale a tensor, as the FP8 modes of the baseline have it."""
    import torch

    a, b = (torch.randn(side, side, device=where).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=where)
    scaled = partial(torch._scaled_mm, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
    return lambda: scaled(a, b.t())
