"""The tiny pipeline through ONNX Runtime's CUDA provider, where that package is installed."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from gpu import images
from gpu.catalogue import Options
from gpu.records import Printer, SkipPartError, guarded

LIMIT = 1e-3
"""Relative error of float32 latents after two evaluations: sums in another order."""


def run(printer: Printer, options: Options) -> None:
    """Images of the embedded model on the GPU and on the CPU, the same bundle."""
    with suppress(ImportError):  # Brings CUDA's libraries, wherever its packages lie.
        import torch  # noqa: F401
    import onnxruntime

    from engines.errors import BundleNotFoundError
    from runtime import Pipeline

    available = onnxruntime.get_available_providers()
    device = "cpu" if options.rehearse else "cuda"
    if device == "cuda" and "CUDAExecutionProvider" not in available:
        raise SkipPartError(
            f"this ONNX Runtime ({onnxruntime.__version__}) has {', '.join(available)}: pip install onnxruntime-gpu"
        )
    try:
        reference = Pipeline.open("tiny", target="cpu")
    except BundleNotFoundError as error:
        raise SkipPartError(f"the embedded model is not here: {error}") from error
    pipeline = Pipeline.open("tiny", target="cpu", backend="onnxruntime", device=device)
    printer("ONNX Runtime", pipeline.backend, backend=pipeline.backend, version=onnxruntime.__version__)
    what = f"tiny, ONNX Runtime {device.upper()}"
    guarded(printer, what, partial(images.compare, printer, what, pipeline, reference, LIMIT))
    guarded(printer, what, partial(images.measure, printer, what, pipeline, options.pick(50, 5, 1)))
