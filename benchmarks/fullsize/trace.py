"""One network's graph at true size, without weights: ``python -m benchmarks.fullsize.trace MODEL NETWORK DIR OUT``.

DIR has ``base`` and ``adapter`` as :mod:`benchmarks.fullsize.synthesise` writes them, hollow or filled. The graph is
traced, simplified and checked just as the exporter does it; its weights become references to a file that is not there.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    import onnx_ir as ir

    from export.precision import Precision

TARGET = "onnx"


def main(argv: Sequence[str] | None = None) -> int:
    """Write one graph. Raises ArcFlowError."""
    from export.precision import Precision

    parser = ArgumentParser(prog="python -m benchmarks.fullsize.trace", description="Trace a network without weights.")
    parser.add_argument("model", choices=("flux", "qwen"))
    parser.add_argument("network")
    parser.add_argument("folder", type=Path, help="has base and adapter")
    parser.add_argument("out", type=Path, help="the .onnx file to write")
    parser.add_argument("--precision", choices=[str(p) for p in Precision if p is not Precision.FP8], default="bf16")
    arguments = parser.parse_args(argv)
    graph = trace_hollow(arguments.model, arguments.network, arguments.folder, Precision(arguments.precision))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(graph)
    return 0


def trace_hollow(model: str, network: str, folder: Path, precision: Precision) -> bytes:
    """The serialised graph of a network of ``folder``/base, checked; weights are references. Raises ArcFlowError."""
    from export import architectures
    from export.assembling.graph import finish, trace
    from export.precision import compute_dtype, opset
    from export.weights.merge import merge

    student = merge(folder / "base" / "transformer", folder / "adapter")
    chosen = architectures.choose(model).network(network, folder / "base", student)
    traced = trace(chosen, compute_dtype(network, precision, TARGET), opset(precision, TARGET))
    _refer(traced)
    return finish(traced, chosen)


def _refer(model: ir.Model) -> None:
    """Make every blank weight a reference to a place in a file that does not exist."""
    import onnx_ir as ir

    offset = 0
    for name, value in model.graph.initializers.items():
        if value.const_value is not None or value.dtype is None or value.shape is None:
            continue
        shape = ir.Shape(value.shape)
        length = int(math.prod(int(size) for size in value.shape) * value.dtype.itemsize)
        value.const_value = ir.ExternalTensor(
            "weights.safetensors", offset, length, value.dtype, shape=shape, name=name, base_dir="."
        )
        offset += length


if __name__ == "__main__":
    sys.exit(run(main))
