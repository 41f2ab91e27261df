"""From a verified bundle and a prompt to an image, without torch, diffusers or transformers.

    from runtime import Pipeline

    pipeline = Pipeline.open("tiny")
    generation = pipeline.generate("a dark ankle boot", seed=7)
    generation.images[0]         # uint8 [height, width, 3]
    generation.save("boot.png")  # the same file as the command's; generation.pil() gives Pillow images

The names below are imported when they are first used, so ``import runtime`` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.errors import BackendError as BackendError
    from runtime.errors import RequestError as RequestError
    from runtime.pipeline import Pipeline as Pipeline
    from runtime.request import Request as Request
    from runtime.result import Generation as Generation
    from runtime.result import Preview as Preview
    from runtime.result import Settings as Settings
    from runtime.result import Step as Step

_HOMES = {
    "BackendError": "runtime.errors",
    "Generation": "runtime.result",
    "Pipeline": "runtime.pipeline",
    "Preview": "runtime.result",
    "Request": "runtime.request",
    "RequestError": "runtime.errors",
    "Settings": "runtime.result",
    "Step": "runtime.result",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
