"""The GPU as runtime and torch see it, and the rates it reaches at best, which the other parts are held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from gpu.catalogue import Options
from gpu.device import open_gpu, torch_device
from gpu.records import Printer, SkipPartError, guarded
from gpu.timing import in_torch


def run(printer: Printer, options: Options) -> None:
    """Say what is there, then measure the ceilings. Processor, driver and versions are in every record."""
    for what, work in (
        ("device", lambda: _device(printer)),
        ("torch", lambda: _torch(printer, options)),
        ("ceilings", lambda: _ceilings(printer, options)),
    ):
        guarded(printer, what, work)


def _device(printer: Printer) -> None:
    """The device as the runtime opens it: its kernels are compiled on the way."""
    device = open_gpu()
    info = device.info
    device.close()
    printer("runtime's device", f"{info.name}, {info.capability}, {info.memory >> 20} MiB", **asdict(info))


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

    size, side = options.pick((2 << 30, 8192), (64 << 20, 1024), (1 << 20, 64))
    rounds = options.pick(20, 3, 3)
    source = torch.empty(size // 4, device=where).normal_()
    copy = in_torch([partial(torch.empty_like(source).copy_, source)], rounds, "torch")
    printer("copy", f"{2 * size / copy.median_s / 1e9:.0f} GB/s read and written", bytes=size, **asdict(copy))
    read = in_torch([source.sum], rounds, "torch")
    printer("read", f"{size / read.median_s / 1e9:.0f} GB/s in a sum", bytes=size, **asdict(read))
    for name, make in (("bf16", _bf16_product), ("fp8", _fp8_product)):

        def measure(name: str = name, make: Callable[[int, str], Callable[[], Any]] = make) -> None:
            product = in_torch([make(side, where)], rounds, "torch")
            rate = 2 * side**3 / product.median_s
            printer(f"product {name} {side}", f"{rate / 1e12:.0f} TFLOP/s", rate=rate, **asdict(product))

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
