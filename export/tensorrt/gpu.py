"""The GPUs of this machine, asked of the driver itself: no CUDA package is needed for that."""

from __future__ import annotations

import ctypes
from functools import cache

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""


@cache
def local_capabilities() -> tuple[str, ...]:
    """The compute capability of each GPU, in the driver's order ("sm89"); empty without a driver or a GPU."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        return _ask(driver)
    return ()


def _ask(driver: ctypes.CDLL) -> tuple[str, ...]:
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    found = []
    for ordinal in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        if driver.cuDeviceGet(ctypes.byref(device), ordinal) != 0:
            continue
        driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        found.append(f"sm{major.value}{minor.value}")
    return tuple(found)
