"""The two flavours of TensorRT behind one loader.

``tensorrt`` is TensorRT for data-centre GPUs, which builds on the very GPU that will run the plan. ``tensorrt-rtx`` is
TensorRT for RTX, which builds for any RTX GPU on any machine, one without a GPU included.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from export.tensorrt.builder_log import make_logger
from export.tensorrt.errors import FlavourError
from export.tensorrt.gpu import local_capabilities
from export.tensorrt.targets import DATA_CENTRE, RTX, Target

_LEAST_VERSION = (10, 13)
"""The first TensorRT whose strongly typed networks take all that our graphs hold."""

_INSTALL = {
    DATA_CENTRE: "pip install tensorrt-cu13 (from NVIDIA)",
    RTX: "pip install 'arcflow[rtx]'",
}
_LIBRARIES = ("libtensorrt_rtx.so.", "libtensorrt_onnxparser_rtx.so.")
_CARRIER = "onnxruntime_ep_nv_tensorrt_rtx"
"""The package whose wheel carries the libraries of TensorRT for RTX; it is found, not imported."""


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


def choose_flavour(target: Target, wanted: str | None = None) -> str:
    """The flavour that builds for ``target`` on this machine; ``wanted`` forces one.

    Where both could, it is the data-centre flavour if a GPU of that target is here to tune on, else RTX.
    Raises FlavourError: with the install command, or because a data-centre build lacks its GPU.
    """
    here = installed()
    if wanted is not None and wanted not in target.flavours:
        raise FlavourError(
            f"--flavour {wanted} does not build for {target.name}; allowed there: {', '.join(target.flavours)}"
        )
    candidates = [wanted] if wanted is not None else list(target.flavours)
    present = [flavour for flavour in candidates if flavour in here]
    if not present:
        commands = ", or ".join(_INSTALL[flavour] for flavour in candidates)
        raise FlavourError(f"--target {target.name} needs {' or '.join(candidates)}, not installed here: {commands}")
    has_gpu = set(target.capabilities) <= set(local_capabilities())
    if has_gpu and DATA_CENTRE in present:
        return DATA_CENTRE
    if RTX in present:
        return RTX
    gpus = ", ".join(local_capabilities()) or "none"
    raise FlavourError(
        f"{DATA_CENTRE} builds on the GPU that will run the plan: --target {target.name} needs one of "
        f"{', '.join(target.capabilities)} here, this machine has {gpus}; build on such a machine"
        + (f", or {_INSTALL[RTX]}" if RTX in target.flavours else "")
    )


@cache
def load(flavour: str) -> Toolkit:
    """Import a flavour. Raises FlavourError with the install command where it is missing, broken or too old."""
    try:
        trt = importlib.import_module("tensorrt") if flavour == DATA_CENTRE else _load_rtx()
    except (ImportError, OSError) as error:
        raise FlavourError(f"{flavour} cannot be loaded: {error}; install it with: {_INSTALL[flavour]}") from error
    version = str(trt.__version__)
    if flavour == DATA_CENTRE and _numbers(version) < _LEAST_VERSION:
        least = ".".join(map(str, _LEAST_VERSION))
        raise FlavourError(f"{flavour} {version} is too old, {least} is the least: {_INSTALL[flavour]} --upgrade")
    return Toolkit(flavour, version, trt, make_logger(trt))


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


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
