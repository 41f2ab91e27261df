"""From a verified bundle and a prompt to an image, without torch, diffusers or transformers.

    from runtime import Pipeline

    pipeline = Pipeline.open("tiny")
    generation = pipeline.generate("a smiling face with sunglasses", seed=7)
    generation.images[0]         # uint8 [height, width, 3]
    generation.save("face.png")  # the same file as the command's; generation.pil() gives Pillow images

The names below are imported when they are first used, so ``import runtime`` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.errors import BackendError, RequestError
    from runtime.pipeline import Pipeline
    from runtime.request import Request
    from runtime.result import Generation, Preview, Settings, Step

__all__ = ["BackendError", "Generation", "Pipeline", "Preview", "Request", "RequestError", "Settings", "Step"]

_HOMES = {"BackendError": "errors", "Pipeline": "pipeline", "Request": "request", "RequestError": "errors"}
"""Modules of the names; the others are in ``result``."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"runtime.{_HOMES.get(name, 'result')}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
