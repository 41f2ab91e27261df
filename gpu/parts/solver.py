"""The solver kernel: right against golden vectors and float64, then its bandwidth beside a copy and torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu.catalogue import Options
from gpu.device import open_gpu, torch_device
from gpu.kernels.checks import check_golden, check_neighbours, check_odd, check_sizes
from gpu.kernels.speed import measure_sizes
from gpu.records import Printer, guarded

if TYPE_CHECKING:
    from runtime.cuda.interface import Device

TOKENS = (4096, 16384)
"""Image tokens of FLUX at 1024x1024, and of an image of 2048x2048 (Qwen-Image's largest)."""

BATCHES = (1, 2, 4, 8)
DTYPES = ("float32", "float16", "bfloat16")


def run(printer: Printer, options: Options) -> None:
    """Correctness first; speed is measured even where it failed, and says so."""
    where = torch_device(options)
    device = open_gpu()
    check(printer, options, device, where)
    guarded(printer, "solver: speed", lambda: measure_sizes(printer, options, device, TOKENS, BATCHES, DTYPES))
    device.close()


def check(printer: Printer, options: Options, device: Device, where: str) -> None:
    """All checks of the kernels. where: torch's device for the float64 reference."""
    tokens, batches = options.pick((TOKENS, BATCHES), ((64,), (1, 2)), ((64,), (1, 2)))
    for what, work in (
        ("solver: golden vectors", lambda: check_golden(printer, device)),
        ("solver: odd sizes", lambda: check_odd(printer, device, where)),
        ("the other kernels", lambda: check_neighbours(printer, device)),
        ("solver: float64", lambda: check_sizes(printer, device, where, tokens, batches, DTYPES)),
    ):
        guarded(printer, what, work)
