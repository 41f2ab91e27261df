"""The two flavours of TensorRT behind one loader, for those who build plans and those who run them.

``tensorrt`` is TensorRT for data-centre GPUs, which builds on the very GPU that will run the plan. ``tensorrt-rtx`` is
TensorRT for RTX, which builds for any RTX GPU on any machine, one without a GPU included.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from engines.errors import FlavourError
from engines.tensorrt_log import make_logger

DATA_CENTRE = "tensorrt"
RTX = "tensorrt-rtx"
"""The flavours, as manifests and users call them. Plans of one cannot be read by the other."""

INSTALL: Mapping[str, str] = {
    DATA_CENTRE: "pip install tensorrt-cu13 (from NVIDIA)",
    RTX: "pip install 'arcflow[rtx]'",
}
"""The command that installs a flavour."""

_LEAST_VERSION = (10, 13)
"""The first TensorRT whose strongly typed networks take all that our graphs hold."""

_LIBRARIES = ("libtensorrt_rtx.so.", "libtensorrt_onnxparser_rtx.so.")
_CARRIER = "onnxruntime_ep_nv_tensorrt_rtx"
"""The package whose wheel carries the libraries of TensorRT for RTX; it is found, not imported."""

_FOR_CUDA: Mapping[str, Mapping[str, int]] = {
    DATA_CENTRE: {"tensorrt-cu13": 13, "tensorrt-cu13-bindings": 13, "tensorrt-cu12": 12, "tensorrt-cu12-bindings": 12},
    RTX: {"tensorrt-rtx-cu13-bindings": 13, "tensorrt-rtx-cu12-bindings": 12},
}
"""Python distributions that are for one major version of CUDA."""


@dataclass(frozen=True)
class Toolkit:
    """A loaded flavour: its name, its own version ("1.7.1.116"), its Python module, and the process's one logger."""

    flavour: str
    version: str
    trt: Any
    logger: Any


def installed() -> tuple[str, ...]:
    """The flavours that are installed here, found without importing them."""
    found = []
    if find_spec("tensorrt") is not None:
        found.append(DATA_CENTRE)
    if find_spec("tensorrt_rtx") is not None or (find_spec("tensorrt_rtx_bindings") and find_spec(_CARRIER)):
        found.append(RTX)
    return tuple(found)


@cache
def load(flavour: str) -> Toolkit:
    """Import a flavour. Raises FlavourError with the install command where it is missing, broken or too old."""
    try:
        trt = importlib.import_module("tensorrt") if flavour == DATA_CENTRE else _load_rtx()
    except (ImportError, OSError) as error:
        raise FlavourError(f"{flavour} cannot be loaded: {error}; install it with: {INSTALL[flavour]}") from error
    found = str(trt.__version__)
    if flavour == DATA_CENTRE and _numbers(found) < _LEAST_VERSION:
        least = ".".join(map(str, _LEAST_VERSION))
        raise FlavourError(f"{flavour} {found} is too old, {least} is the least: {INSTALL[flavour]} --upgrade")
    return Toolkit(flavour, found, trt, make_logger(trt))


def cuda_of(flavour: str) -> int | None:
    """The major version of CUDA that the installed flavour is for; None where Python's metadata does not tell."""
    for distribution, cuda in _FOR_CUDA[flavour].items():
        try:
            version(distribution)
        except PackageNotFoundError:
            continue
        return cuda
    return None


def _load_rtx() -> ModuleType:
    """NVIDIA's own package if it is there; else the registry's bindings over the libraries of the carrier."""
    if find_spec("tensorrt_rtx") is not None:
        return importlib.import_module("tensorrt_rtx")
    spec = find_spec(_CARRIER)
    if spec is None or spec.origin is None:
        raise ImportError(f"no package {_CARRIER}")
    folder = Path(spec.origin).parent
    for prefix in _LIBRARIES:
        found = sorted(folder.glob(f"{prefix}*"))
        if not found:
            raise ImportError(f"no {prefix}* in {folder}")
        ctypes.CDLL(str(found[-1]), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_rtx_bindings")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
