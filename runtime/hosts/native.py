"""``host="native"``: the C++ core.

The package ``arcflow_native`` (the extra ``native``) brings the core; it has no ONNX Runtime of its own and is handed
the library inside the installed ``onnxruntime`` package, which is not imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from engines.errors import BundleError
from foundation.errors import ArcFlowError
from runtime.errors import BackendError, RequestError
from runtime.hosts.interface import CLOSED, weight_bytes
from runtime.result import Generation, OnPreview, OnStep, Pixels, Preview, Settings, Step
from runtime.text import PromptTokenizer, load_tokenizers

if TYPE_CHECKING:
    import arcflow_native
    from arcflow_native import _core

    from engines.bundle import Bundle
    from runtime.request import Request

ENVIRONMENT = "ARCFLOW_ONNXRUNTIME"
"""Environment variable with the path of another libonnxruntime than the installed package's."""

INSTALL = "pip install ./runtime/native/python"


class NativeHost:
    """A bundle that the C++ core has loaded. Made by :func:`open_native`."""

    def __init__(self, bundle: Bundle, model: arcflow_native.Model) -> None:
        self.manifest = bundle.manifest
        self._bundle = bundle
        self._model: arcflow_native.Model | None = model
        self.backend: str = model.info["backend"]

    @cached_property
    def tokenizers(self) -> Mapping[str, PromptTokenizer]:
        """The same as the core's; read only where they are asked for."""
        return load_tokenizers(self._bundle)

    def generate(
        self,
        request: Request,
        settings: Settings,
        on_step: OnStep | None = None,
        on_preview: OnPreview | None = None,
    ) -> Generation:
        """As :class:`runtime.hosts.interface.Host`, without holding the interpreter's lock; Ctrl-C ends it at once.

        A step's ``latents`` are None.
        """
        from arcflow_native import NativeError

        if (model := self._model) is None:
            raise BackendError(CLOSED)
        frames: list[dict[int, Preview]] = [{} for _ in range(request.total)]

        def collect(image: int, frame: int, sigma: float, pixels: Pixels) -> None:
            frames[image][frame] = preview = Preview(sigma, pixels)
            if on_preview is not None:
                on_preview(image, preview)

        try:
            output = model.generate(
                request.prompts,
                seeds=request.seeds,
                num_images=request.num_images,
                nfe=request.nfe,
                width=request.width,
                height=request.height,
                previews=request.previews,
                on_step=None if on_step is None else lambda step: on_step(_step(step)),
                on_preview=collect if request.previews else None,
            )
        except NativeError as error:
            _raise(error)
        seconds = output["seconds"]
        return Generation(
            images=tuple(output["images"]),
            latents=output["latents"],
            previews=tuple(tuple(found[frame] for frame in sorted(found)) for found in frames),
            settings=settings,
            timings={stage: value for stage, value in seconds.items() if stage != "total"},
            warnings=tuple(output["warnings"]),
        )

    def memory(self) -> Mapping[str, int]:
        """weights: bytes of the networks' files; the core's engines do not say what they made of them."""
        return {"weights": 0 if self._model is None else weight_bytes(self.manifest)}

    def close(self) -> None:
        """Let the model go; a generation that runs ends first."""
        self._model = None


def open_native(bundle: Bundle, *, threads: int) -> NativeHost:
    """Load an opened bundle; the core verifies every byte that it loads itself.

    Raises BundleError, BackendError (also where ``arcflow_native`` is not installed).
    """
    try:
        import arcflow_native as native
    except ImportError as error:
        raise BackendError(
            f"host='native' needs the package arcflow-native ({error}); in ArcFlow's source tree: {INSTALL}"
        ) from error
    folder = str(bundle.root.absolute())
    library = None if os.environ.get(ENVIRONMENT) else onnxruntime_library()
    try:
        model = native.Model(
            folder,
            library=None if library is None else str(library),
            threads=threads,
            allow_links=bundle.allow_links,
        )
    except native.NativeError as error:
        _raise(error)
    except UnicodeEncodeError as error:
        raise BackendError(f"{folder!r} is not text: rename the folder, or use host='python'") from error
    if model.info["digest"] != bundle.manifest.digest:
        raise BundleError(f"{folder} was changed while it was opened: open it again")
    return NativeHost(bundle, model)


def onnxruntime_library() -> Path | None:
    """The shared library inside the installed ``onnxruntime`` package, which is not imported; None if there is none."""
    spec = find_spec("onnxruntime")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        libraries = sorted((Path(folder) / "capi").glob("libonnxruntime.*"))
        if libraries:
            return libraries[-1]
    return None


def _step(step: _core.Step) -> Step:
    place = (step["index"], step["total"], step["first_image"])
    return Step(*place, sigma_from=step["sigma_from"], sigma_to=step["sigma_to"], latents=None)


def _raise(error: Exception) -> NoReturn:
    """The same class of error that host="python" raises for what the core rejects."""
    from arcflow_native import _errors

    code = getattr(error, "code", _errors.INTERNAL)
    kinds: dict[int, type[ArcFlowError]] = {
        _errors.INVALID_ARGUMENT: RequestError,
        _errors.BUNDLE_REJECTED: BundleError,
    }
    running = (_errors.BACKEND_UNAVAILABLE, _errors.OUT_OF_MEMORY, _errors.CANCELLED, _errors.DEADLINE_EXCEEDED)
    kinds |= dict.fromkeys(running, BackendError)
    if code not in kinds:
        raise error
    raise kinds[code](str(error)) from error
