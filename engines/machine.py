"""What this machine has that plans depend on: its GPUs and its TensorRT. Nothing is imported and nothing is run."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""

_NAME_BYTES = 256

DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}
"""Python distributions that carry a flavour, some for one major version of CUDA; their version is TensorRT's own."""


@dataclass(frozen=True)
class Machine:
    """gpus: the compute capability of each GPU ("sm89"); flavours: the installed versions of TensorRT.

    names: what the driver calls each of the GPUs.
    """

    gpus: tuple[str, ...]
    flavours: Mapping[str, str]
    names: tuple[str, ...] = ()


@cache
def this_machine() -> Machine:
    """What is here, asked once a process: the driver for its GPUs, Python's metadata for TensorRT."""
    installed = {flavour: filter(None, map(version_of, names)) for flavour, names in DISTRIBUTIONS.items()}
    flavours = {flavour: found for flavour, versions in installed.items() if (found := next(versions, None))}
    gpus = _gpus()
    return Machine(tuple(capability for capability, _ in gpus), flavours, tuple(name for _, name in gpus))


def version_of(distribution: str) -> str | None:
    """The version of an installed Python distribution."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _gpus() -> tuple[tuple[str, str], ...]:
    """Compute capability and name of each."""
    for name in _DRIVERS:
        try:
            return _ask(ctypes.CDLL(name))
        except (OSError, AttributeError):  # No driver, or a library that is not one.
            continue
    return ()


def _ask(driver: ctypes.CDLL) -> tuple[tuple[str, str], ...]:
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    found = []
    for ordinal in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(_NAME_BYTES)
        results = (
            driver.cuDeviceGet(ctypes.byref(device), ordinal),
            driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
            driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
            driver.cuDeviceGetName(name, len(name), device),
        )
        if not any(results):
            found.append((f"sm{major.value}{minor.value}", name.value.decode(errors="replace")))
    return tuple(found)
