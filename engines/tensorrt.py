"""The two flavours of TensorRT behind one loader, for those who build plans and those who run them.

``tensorrt`` is TensorRT for data-centre GPUs, which builds on the very GPU that will run the plan. ``tensorrt-rtx`` is
TensorRT for RTX, which builds for any RTX GPU on any machine, one without a GPU included.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from engines.errors import FlavourError
from engines.machine import DISTRIBUTIONS, version_of

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

_KEPT = 20
"""Errors and warnings kept of each kind; the rest is counted only."""

_NOISE = re.compile(r"catchCudaError|^\s*$")
"""Errors that follow another one wherever there is no GPU, and say nothing of their own."""

_MEMORY = re.compile(r"Total (Weights|Activation) Memory: (\d+) bytes")
"""What a builder says, as information, of a plan that it has laid out."""

_POSITIONS = re.compile(r"^IBuilder::\w+: |Error Code \d+: |Myelin \(|\[[\w.]+:\d+: \w+\] | In \w+ at /_src/\S+")


@dataclass
class TensorRTLog:
    """What was said during one piece of work.

    errors, warnings: the first of each; warning_count: of all of them. memory: bytes of the plan that was built, of its
    "Weights" and of the "Activation" that it works in, as far as the builder said them.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    warning_count: int = 0
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """The first error, on one line and without TensorRT's own source positions."""
        first = next((error for error in self.errors if not _NOISE.search(error)), "it gave no reason")
        return " ".join(_POSITIONS.sub("", first).split())

    def error(self, message: str) -> None:
        if len(self.errors) < _KEPT:
            self.errors.append(message)

    def warning(self, message: str) -> None:
        """Count a warning, and keep it if it is among the first."""
        self.warning_count += 1
        if len(self.warnings) < _KEPT:
            self.warnings.append(message)

    def information(self, message: str) -> None:
        """Keep what it says of a plan's memory, the greatest where it says several figures."""
        if found := _MEMORY.search(message):
            self.memory[found[1]] = max(int(found[2]), self.memory.get(found[1], 0))


def make_logger(trt: Any) -> Any:
    """A logger for TensorRT, which wants one for the life of the process; its ``sink`` is a TensorRTLog or None."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.sink: TensorRTLog | None = None

        def log(self, severity: Any, message: str) -> None:
            if self.sink is None:
                return
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.sink.error(message)
            elif severity == trt.ILogger.Severity.WARNING:
                self.sink.warning(message)
            elif severity == trt.ILogger.Severity.INFO:
                self.sink.information(message)

    return Logger()


@contextmanager
def listening(logger: Any) -> Iterator[TensorRTLog]:
    """What ``logger`` hears inside; whoever listened before listens again afterwards."""
    before, log = logger.sink, TensorRTLog()
    logger.sink = log
    try:
        yield log
    finally:
        logger.sink = before


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
    tagged = ((name, re.search(r"-cu(\d+)", name)) for name in DISTRIBUTIONS[flavour])
    return next((int(tag[1]) for name, tag in tagged if tag and version_of(name)), None)


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
