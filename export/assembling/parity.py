"""Parity: whether an exported network computes what the original computes, at three shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.schema import ParityResult
from export.errors import ParityError
from export.fp8.numbers import round_up
from export.networks.base import Network
from export.students.rollout import cpu_session

if TYPE_CHECKING:
    import onnx
    import torch
    from rich.table import Table

LIMITS: Mapping[str, float] = {"fp32": 1e-4, "fp16": 3e-3, "bf16": 5e-2, "fp8": 1.2e-1}
"""By what a network computes in, the greatest relative L2 error of any output at any shape, to torch in float32.

Each is about two and a half times the worst that was measured on the trained ``tiny``, on small random pipelines and
on the twins of both architectures. fp32 leaves room for sums in another order (worst 2e-5). fp16 rounds to 11 bits
(worst 1.2e-3 where the policy takes it: backbones and CLIP), bf16 to 8 bits, eight times as coarse (worst 2e-2: T5,
whose residual grows; backbones 1.2e-2), the inputs and weights of fp8's linears to 4 bits (worst 5e-2: ``tiny``).
"""

HALVED_LIMITS: Mapping[str, float] = {
    "clip": 2e-3,
    "t5": 4e-3,
    "text": 2e-3,
    "conditioner": 1e-3,
    "backbone": 8e-4,
    "vae_decoder": 2e-3,
}
"""By network, the same where it computes in float32 with its matrices stored in float16, rounded to 11 bits and then
exact. About two and a half times the worst that was measured, on small random pipelines saved in float32: CLIP 7.4e-4,
T5 1.6e-3, Qwen2.5-VL 8.2e-4, conditioner 4.8e-4, backbones 3.5e-4, VAE decoders 6.7e-4. What was published in bfloat16
is exact in float16, so that of the twins only what is merged differs (backbones 1.5e-4; the others 2e-6).
"""

_LIMIT_OF = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

_SEED = 20260209
_DIGITS = 2
"""Significant digits of an error that are kept (rounded up): the rest depends on the machine."""


def check_parity(
    network: Network, model: bytes | Path, precision: str, compute: str = "float32", seed: int = _SEED
) -> list[ParityResult]:
    """Run an ONNX model in ONNX Runtime's CPU and the network's reference in float32 torch on the same random inputs.

    model: its bytes, or its file, beside which external data may lie. compute: the type the network computes in. It
    sets the limit; where the model has FP8 weights, ``precision`` (the bundle's) does. bfloat16 is emulated, see
    :mod:`export.passes.precision.emulate_bfloat16`.

    Returns one result a shape: the greatest relative L2 error of its outputs. Raises ParityError where one is above
    the limit or is not finite.
    """
    import onnx

    proto = onnx.load(model, load_external_data=False) if isinstance(model, Path) else onnx.load_from_string(model)
    kind, limit = _limit(proto, network.name, precision, compute)
    with _one_thread():
        # All before the session is there: their weights need not be in memory together.
        wanted = _references(network, seed)
        session = onnx_session(proto, model.parent if isinstance(model, Path) else None, compute)
        results = [
            ParityResult(network.name, dict(sizes), rounded(_error(session, network, inputs, truths)), limit)
            for sizes, (inputs, truths) in zip(network.parity_sizes, wanted, strict=True)
        ]
    missed = [result for result in results if not result.relative_error <= limit]
    if missed:
        worst = max(missed, key=lambda result: result.relative_error)
        raise ParityError(
            f"the exported {network.name} differs from the original by {worst.relative_error:.1e} (relative L2) at "
            f"{shape_text(worst)}; the limit for {kind} is {limit:.0e}; nothing was written"
        )
    return results


def onnx_session(proto: onnx.ModelProto, folder: Path | None, compute: str, threads: int = 1) -> Any:
    """A model in ONNX Runtime's CPU; where it computes in bfloat16, that is emulated.

    folder: of its external data. threads: 0 for all.
    """
    data = (_emulated(proto) if compute == "bfloat16" else proto).SerializeToString()
    return cpu_session(data, folder, threads)


def limit_of(results: Sequence[ParityResult], network: str, compute: str) -> float:
    """What was allowed to a network when its parity was measured; of its type where it was not."""
    return max((r.limit for r in results if r.network == network), default=LIMITS[_LIMIT_OF[compute]])


def shape_text(result: ParityResult) -> str:
    """Where it was measured: "batch=1 text_tokens=12"."""
    return " ".join(f"{name}={size}" for name, size in result.shape.items())


def rounded(error: float) -> float:
    """An error with the digits that are kept."""
    return round_up(error, _DIGITS)


def parity_table(results: Sequence[ParityResult], truth: str = "torch") -> Table:
    """The results as a table for the terminal. truth: what the networks or their plans were held to."""
    from rich.table import Table

    table = Table(title=f"parity with {truth} (relative L2 error, worst output)")
    for name in ("network", "on", "shape", "error", "limit"):
        table.add_column(name, justify="right" if name in ("error", "limit") else "left")
    for result in results:
        shape = ", ".join(f"{name} {size}" for name, size in result.shape.items())
        name = f"{result.network} (twin)" if result.twin else result.network
        table.add_row(name, result.device or "CPU", shape, f"{result.relative_error:.1e}", f"{result.limit:.0e}")
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


def _references(network: Network, seed: int) -> list[tuple[dict[str, torch.Tensor], Sequence[torch.Tensor]]]:
    """Random inputs of each shape, and what the network's reference makes of them."""
    import torch

    reference, found = network.reference(), []
    for index, sizes in enumerate(network.parity_sizes):
        inputs = network.examples(sizes, torch.Generator().manual_seed(seed + index))
        with torch.no_grad():
            found.append((inputs, reference(**inputs)))
    return found


def _error(session: Any, network: Network, inputs: Mapping[str, torch.Tensor], truths: Sequence[torch.Tensor]) -> float:
    """The greatest relative error of an output."""
    import torch

    values = session.run(list(network.ports_out), {name: tensor.numpy() for name, tensor in inputs.items()})
    pairs = zip(values, truths, strict=True)
    return max(relative_error(torch.from_numpy(value), truth) for value, truth in pairs)


def _limit(model: onnx.ModelProto, network: str, precision: str, compute: str) -> tuple[str, float]:
    """What sets the limit of a network, in words, and the limit."""
    import onnx

    stored = {tensor.data_type for tensor in model.graph.initializer}
    if onnx.TensorProto.FLOAT8E4M3FN in stored:
        return precision, LIMITS[precision]
    if compute == "float32" and onnx.TensorProto.FLOAT16 in stored:
        return "float32 with matrices in float16", HALVED_LIMITS[network]
    return _LIMIT_OF[compute], LIMITS[_LIMIT_OF[compute]]


def _emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with bfloat16 arithmetic in float32; external weights stay where they are."""
    import onnx_ir as ir

    from export.passes.precision.emulate_bfloat16 import emulate_bfloat16

    graph = ir.from_proto(model)
    emulate_bfloat16(graph)
    return ir.to_proto(graph)


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
