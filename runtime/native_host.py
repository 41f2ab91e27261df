"""``Pipeline.open(..., host="native")``: the same pipeline, run by the C++ core.

The package ``arcflow_native`` (the extra ``native``) brings the core; it has no ONNX Runtime of its own and is handed
the library inside the installed ``onnxruntime`` package, which is not imported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from engines.bundle import Bundle
from engines.errors import BundleError
from engines.manifest import Manifest
from foundation.errors import ArcFlowError
from runtime.errors import BackendError, RequestError
from runtime.pipeline import Pipeline
from runtime.request import check_request
from runtime.result import Generation, OnStep, Picture, Preview, Step
from runtime.settings import settings_of

if TYPE_CHECKING:
    import arcflow_native
    from arcflow_native import _core

ENVIRONMENT = "ARCFLOW_ONNXRUNTIME"
"""Environment variable with the path of another libonnxruntime than the installed package's."""

INSTALL = "pip install ./runtime/native/python"


class NativePipeline(Pipeline):
    """A bundle that the C++ core has loaded. Made by :meth:`Pipeline.open`. Safe to call from several threads."""

    def __init__(self, manifest: Manifest, model: arcflow_native.Model) -> None:
        """Compose a pipeline from a model that is already loaded; most callers want :meth:`Pipeline.open`."""
        self.manifest = manifest
        self._model = model

    @classmethod
    def load(cls, bundle: Bundle, *, threads: int) -> NativePipeline:
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
            model = native.Model(folder, library=None if library is None else str(library), threads=threads)
        except native.NativeError as error:
            _raise(error)
        except UnicodeEncodeError as error:
            raise BackendError(f"{folder!r} is not text: rename the folder, or use host='python'") from error
        if model.info["digest"] != bundle.manifest.digest:
            raise BundleError(f"{folder} was changed while it was opened: open it again")
        return cls(bundle.manifest, model)

    @property
    def backend(self) -> str:
        """What runs the networks: "ONNX Runtime 1.32.0, CPU, 2 threads"."""
        return self._model.info["backend"]

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int = 0,
        nfe: int | None = None,
        num_images: int = 1,
        width: int | None = None,
        height: int | None = None,
        previews: int = 0,
        on_step: OnStep | None = None,
    ) -> Generation:
        """As :meth:`Pipeline.generate`, without holding the interpreter's lock; Ctrl-C ends it within milliseconds.

        A step's ``latents`` are None.
        """
        from arcflow_native import NativeError

        request = check_request(
            self.manifest,
            prompt,
            seed=seed,
            nfe=nfe,
            num_images=num_images,
            width=width,
            height=height,
            previews=previews,
        )
        frames: list[dict[int, Preview]] = [{} for _ in range(request.total)]

        def keep(image: int, frame: int, sigma: float, pixels: Picture) -> None:
            frames[image][frame] = Preview(sigma, pixels)

        try:
            output = self._model.generate(
                request.prompts,
                seed=request.seed,
                num_images=request.num_images,
                nfe=request.nfe,
                width=request.width,
                height=request.height,
                previews=request.previews,
                on_step=None if on_step is None else lambda step: on_step(_step(step)),
                on_preview=keep if request.previews else None,
            )
        except NativeError as error:
            _raise(error)
        seconds = output["seconds"]
        return Generation(
            images=tuple(output["images"]),
            latents=output["latents"],
            previews=tuple(tuple(found[frame] for frame in sorted(found)) for found in frames),
            settings=settings_of(self.manifest, request),
            timings={stage: value for stage, value in seconds.items() if stage != "total"},
            warnings=tuple(output["warnings"]),
        )


def onnxruntime_library() -> Path | None:
    """The shared library inside the installed ``onnxruntime`` package, which is not imported; None if there is none."""
    spec = find_spec("onnxruntime")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        libraries = sorted((Path(folder) / "capi").glob("libonnxruntime.*"))
        if libraries:
            return libraries[-1]
    return None


def _step(step: _core.Step) -> Step:
    return Step(
        index=step["index"],
        total=step["total"],
        first_image=step["first_image"],
        sigma_from=step["sigma_from"],
        sigma_to=step["sigma_to"],
        latents=None,
    )


def _raise(error: Exception) -> NoReturn:
    """The same class of error that host="python" raises for what the core refuses."""
    from arcflow_native import _errors

    code = getattr(error, "code", _errors.INTERNAL)
    kinds: dict[int, type[ArcFlowError]] = {
        _errors.INVALID_ARGUMENT: RequestError,
        _errors.BUNDLE_REJECTED: BundleError,
        _errors.BACKEND_UNAVAILABLE: BackendError,
        _errors.OUT_OF_MEMORY: BackendError,
        _errors.CANCELLED: BackendError,
        _errors.DEADLINE_EXCEEDED: BackendError,
    }
    if code not in kinds:
        raise error
    raise kinds[code](str(error)) from error
