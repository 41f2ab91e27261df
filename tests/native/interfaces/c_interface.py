"""The C interface through ctypes, as a program in another language would use it: structs and table by hand."""

from __future__ import annotations

import ctypes as c
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.text import TokenIds

INVALID_ARGUMENT, BUNDLE_REJECTED, BACKEND_UNAVAILABLE, CANCELLED, DEADLINE_EXCEEDED = 1, 2, 3, 5, 6

Floats = NDArray[np.float32]


class _Struct(c.Structure):
    """A struct that knows its size."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=c.sizeof(type(self)), **fields)


class ContextOptions(_Struct):
    """ArcflowContextOptions."""

    _fields_ = (
        ("struct_size", c.c_size_t),
        ("logger", c.c_void_p),
        ("logger_user", c.c_void_p),
        ("least_level", c.c_int32),
        ("host_directory", c.c_char_p),
    )


class ModelOptions(_Struct):
    """ArcflowModelOptions."""

    _fields_ = (
        ("struct_size", c.c_size_t),
        ("bundle", c.c_char_p),
        ("precision", c.c_char_p),
        ("target", c.c_char_p),
        ("host", c.c_char_p),
        ("library", c.c_char_p),
        ("threads", c.c_uint32),
        ("device", c.c_uint32),
        ("allow_links", c.c_uint64),
    )


class Tokens(_Struct):
    """ArcflowTokens."""

    _fields_ = (
        ("struct_size", c.c_size_t),
        ("encoder", c.c_char_p),
        ("ids", c.c_void_p),
        ("mask", c.c_void_p),
        ("length", c.c_size_t),
    )


class Request(_Struct):
    """ArcflowRequest."""

    _fields_ = (
        ("struct_size", c.c_size_t),
        ("prompts", c.POINTER(c.c_char_p)),
        ("prompt_count", c.c_size_t),
        ("tokens", c.c_void_p),
        ("token_count", c.c_size_t),
        ("seed", c.c_uint64),
        ("seeds", c.POINTER(c.c_uint64)),
        ("seed_count", c.c_size_t),
        ("num_images", c.c_uint32),
        ("nfe", c.c_uint32),
        ("width", c.c_uint32),
        ("height", c.c_uint32),
        ("previews", c.c_uint32),
        ("timeout", c.c_double),
        ("cancel", c.c_void_p),
        ("on_step", c.c_void_p),
        ("on_preview", c.c_void_p),
        ("on_warning", c.c_void_p),
        ("user", c.c_void_p),
    )


class Shape(_Struct):
    """ArcflowShape."""

    _fields_ = (
        ("struct_size", c.c_size_t),
        ("image_count", c.c_uint32),
        ("width", c.c_uint32),
        ("height", c.c_uint32),
        ("nfe", c.c_uint32),
        ("rgb8_bytes", c.c_size_t),
        ("image_floats", c.c_size_t),
        ("latent_floats", c.c_size_t),
    )


class Output(_Struct):
    """ArcflowOutput."""

    _fields_ = (
        ("struct_size", c.c_size_t),
        ("rgb8", c.c_void_p),
        ("rgb8_bytes", c.c_size_t),
        ("images", c.c_void_p),
        ("image_floats", c.c_size_t),
        ("latents", c.c_void_p),
        ("latent_floats", c.c_size_t),
        ("seconds", c.c_double * 7),
    )


_ENTRIES = (
    "library_version",
    "status_code",
    "status_message",
    "status_destroy",
    "context_create",
    "context_destroy",
    "model_open",
    "model_destroy",
    "model_info",
    "model_memory",
    "model_shape",
    "session_create",
    "session_destroy",
    "session_memory",
    "session_warm_up",
    "session_generate",
    "cancel_create",
    "cancel_request",
    "cancel_destroy",
    "describe_image",
    "encode_png",
    "bytes_data",
    "bytes_size",
    "bytes_destroy",
    "verify_bundle",
    "noise",
)


class _Table(c.Structure):
    _fields_ = (
        ("struct_size", c.c_size_t),
        ("version", c.c_uint32),
        *[(name, c.c_void_p) for name in _ENTRIES],
    )


class StatusError(Exception):
    """A call failed: its code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Made:
    """rgb8 uint8 [N, H, W, 3], latents float32 [values], seconds by stage with the total last."""

    rgb8: NDArray[np.uint8]
    latents: Floats
    seconds: tuple[float, ...]


class Library:
    """The table of a built ``libarcflow_runtime.so``."""

    def __init__(self, path: Path) -> None:
        get = c.CDLL(str(path)).arcflow_get_api
        get.restype, get.argtypes = c.POINTER(_Table), [c.c_uint32]
        self._table = get(1).contents

    def call(self, name: str, *arguments: Any) -> None:
        """A function that gives a status. Raises StatusError."""
        status = self._entry(name, c.c_void_p)(*arguments)
        if status is not None:
            code = self._entry("status_code", c.c_int32)(c.c_void_p(status))
            message = self._entry("status_message", c.c_char_p)(c.c_void_p(status))
            self.do("status_destroy", c.c_void_p(status))
            raise StatusError(code, message.decode())

    def make(self, name: str, *arguments: Any) -> c.c_void_p:
        """A function that gives an object through its last argument. Raises StatusError."""
        out = c.c_void_p()
        self.call(name, *arguments, c.byref(out))
        return out

    def do(self, name: str, *arguments: Any) -> None:
        """A function that gives nothing."""
        self._entry(name, None)(*arguments)

    def _entry(self, name: str, result: Any) -> Any:
        return c.CFUNCTYPE(result)(getattr(self._table, name))


class Model:
    """An opened bundle with one session."""

    def __init__(
        self,
        library: Library,
        bundle: str | Path,
        onnxruntime: Path,
        host: str | None = None,
        allow_links: bool = False,
    ) -> None:
        self.library = library
        self.context = library.make("context_create", None)
        options = ModelOptions(
            bundle=str(bundle).encode(),
            library=str(onnxruntime).encode(),
            threads=1,
            host=host and host.encode(),
            allow_links=allow_links,
        )
        self._model = self._session = c.c_void_p()
        try:
            self._model = library.make("model_open", self.context, c.byref(options))
            self._session = library.make("session_create", self._model, None)
        except StatusError:
            self.close()
            raise

    def close(self) -> None:
        """Destroy all, in an order that a careless program might choose."""
        for kind, handle in (("context", self.context), ("model", self._model), ("session", self._session)):
            self.library.do(f"{kind}_destroy", handle)

    def generate(
        self,
        prompts: Sequence[str] = (),
        *,
        tokens: Mapping[str, TokenIds] | None = None,
        seeds: Sequence[int] | None = None,
        **fields: Any,
    ) -> Made:
        """Run a request; ``fields`` are those of ArcflowRequest."""
        request = Request(**fields)
        texts = (c.c_char_p * len(prompts))(*[prompt.encode() for prompt in prompts])
        request.prompts, request.prompt_count = texts, len(prompts)
        if seeds is not None:
            request.seeds, request.seed_count = (c.c_uint64 * len(seeds))(*seeds), len(seeds)
        if tokens is not None:
            entries = [
                Tokens(encoder=name.encode(), ids=t.ids.ctypes.data, mask=t.mask.ctypes.data, length=t.ids.shape[1])
                for name, t in tokens.items()
            ]
            array = (Tokens * len(entries))(*entries)
            request.prompts, request.prompt_count = None, len(next(iter(tokens.values())).ids)
            request.tokens, request.token_count = c.addressof(array), len(entries)
        shape = Shape()
        self.library.call("model_shape", self._model, c.byref(request), c.byref(shape))
        rgb8 = np.zeros((shape.image_count, shape.height, shape.width, 3), dtype=np.uint8)
        latents = np.zeros(shape.latent_floats, dtype=np.float32)
        output = Output(
            rgb8=rgb8.ctypes.data, rgb8_bytes=rgb8.nbytes, latents=latents.ctypes.data, latent_floats=latents.size
        )
        self.library.call("session_generate", self._session, c.byref(request), c.byref(output))
        return Made(rgb8, latents, tuple(output.seconds))
