"""Parity: whether an exported network computes what the original computes, at three shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from engines.manifest import ParityResult
from export.errors import ParityError
from export.networks.base import Network

if TYPE_CHECKING:
    import torch
    from rich.table import Table

LIMITS: Mapping[str, float] = {"fp32": 1e-4}
"""For each precision, the greatest relative L2 error of any output at any shape."""

_SEED = 20260209
_DIGITS = 2
"""Significant digits of an error that are kept (rounded up): the rest depends on the machine."""


def check_parity(network: Network, model: bytes, precision: str, seed: int = _SEED) -> list[ParityResult]:
    """Run ``model`` (ONNX bytes) in ONNX Runtime and the network's reference in torch on the same random inputs.

    Returns one result a shape: the greatest relative L2 error of its outputs. Raises ParityError where one is above
    the limit of ``precision`` or is not finite.
    """
    limit = LIMITS[precision]
    with _one_thread():
        results = list(_measure(network, model, limit, seed))
    missed = [result for result in results if not result.relative_error <= limit]
    if missed:
        worst = max(missed, key=lambda result: result.relative_error)
        shape = " ".join(f"{name}={size}" for name, size in worst.shape.items())
        raise ParityError(
            f"the exported {network.name} differs from the original by {worst.relative_error:.1e} (relative L2) at "
            f"{shape}; the limit for {precision} is {limit:.0e}; nothing was written"
        )
    return results


def parity_table(results: Sequence[ParityResult]) -> Table:
    """The results as a table for the terminal."""
    from rich.table import Table

    table = Table(title="parity with torch (relative L2 error, worst output)")
    for name in ("network", "shape", "error", "limit"):
        table.add_column(name, justify="left" if name in ("network", "shape") else "right")
    for result in results:
        shape = ", ".join(f"{name} {size}" for name, size in result.shape.items())
        table.add_row(result.network, shape, f"{result.relative_error:.1e}", f"{result.limit:.0e}")
    return table


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    """L2 norm of the difference over that of ``truth`` (of the difference alone where ``truth`` is zero).

    Infinite where the shapes differ or a value is not finite.
    """
    if value.shape != truth.shape or not value.isfinite().all() or not truth.isfinite().all():
        return math.inf
    difference = float((value.double() - truth.double()).norm())
    norm = float(truth.double().norm())
    return difference / norm if norm else difference


def _measure(network: Network, model: bytes, limit: float, seed: int) -> Iterator[ParityResult]:
    import torch

    session = _session(model)
    reference = network.reference()
    names = list(network.ports_out)
    for index, sizes in enumerate(network.parity_sizes):
        inputs = network.examples(sizes, torch.Generator().manual_seed(seed + index))
        with torch.no_grad():
            truths = reference(**inputs)
        values = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        pairs = zip(values, truths, strict=True)
        error = max(relative_error(torch.from_numpy(value), truth) for value, truth in pairs)
        yield ParityResult(network.name, dict(sizes), _round_up(error), limit)


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in torch depend on the number of threads; with one they are the same everywhere."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _round_up(error: float) -> float:
    if error == 0.0 or not math.isfinite(error):
        return error
    unit = 10.0 ** (math.floor(math.log10(error)) - _DIGITS + 1)
    return float(f"{math.ceil(error / unit) * unit:.{_DIGITS - 1}e}")
