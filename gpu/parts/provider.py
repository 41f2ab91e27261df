"""(d) The tiny pipeline through ONNX Runtime's CUDA provider, where that package is installed."""

from __future__ import annotations

from functools import partial

from gpu import pictures
from gpu.catalogue import Options
from gpu.records import Printer, SkipPartError, guarded

LIMIT = 1e-3
"""Relative error of float32 latents after two evaluations: sums in another order."""


def run(printer: Printer, options: Options) -> None:
    """Pictures of the embedded model on the GPU and on the CPU, the same bundle."""
    import onnxruntime

    from runtime import Pipeline

    available = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise SkipPartError(
            f"this ONNX Runtime ({onnxruntime.__version__}) has {', '.join(available)}: pip install onnxruntime-gpu"
        )
    pipeline = Pipeline.open("tiny", target="cpu", backend="onnxruntime", device="cuda")
    reference = Pipeline.open("tiny", target="cpu")
    printer("ONNX Runtime", pipeline.backend, backend=pipeline.backend)
    what = "tiny, ONNX Runtime CUDA"
    guarded(printer, what, partial(pictures.compare, printer, what, pipeline, reference, LIMIT))
    guarded(printer, what, partial(pictures.measure, printer, what, pipeline, 5 if options.smoke else 50))
