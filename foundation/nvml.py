"""NVIDIA GPUs, asked through their management library: what nvidia-smi asks, with every driver. Nothing is set."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
_SM, _MEMORY = 1, 2  # NVML_CLOCK_SM, NVML_CLOCK_MEM


@dataclass(frozen=True)
class Look:
    """One look: clocks of multiprocessors and memory in MHz, watts, degrees Celsius, percent of the time at work."""

    sm_mhz: int
    memory_mhz: int
    watts: float
    celsius: int
    busy: int


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _MemoryInfo(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Nvml:
    """One GPU. Every call raises OSError where the library has no answer."""

    def __init__(self, library: str = LIBRARY, index: int = 0) -> None:
        """Raises OSError where there is no such library, it does not start, or it has no GPU of that number."""
        self._library = ctypes.CDLL(library)
        self._handle = ctypes.c_void_p()
        self._call("nvmlInit_v2")
        self._call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(self._handle))

    def describe(self) -> dict[str, Any]:
        """Its name, the driver's version, bytes of memory, and the limit of its power in watts where it tells."""
        name, driver, memory = ctypes.create_string_buffer(96), ctypes.create_string_buffer(96), _MemoryInfo()
        self._call("nvmlDeviceGetName", self._handle, name, len(name))
        self._call("nvmlSystemGetDriverVersion", driver, len(driver))
        self._call("nvmlDeviceGetMemoryInfo", self._handle, ctypes.byref(memory))
        found = {"name": name.value.decode(), "driver": driver.value.decode(), "memory_bytes": memory.total}
        with suppress(OSError):
            found["power_limit_watts"] = self._ask("nvmlDeviceGetPowerManagementLimit") / 1e3
        return found

    def look(self) -> Look:
        """As the GPU is now."""
        busy = _Utilization()
        self._call("nvmlDeviceGetUtilizationRates", self._handle, ctypes.byref(busy))
        return Look(
            sm_mhz=self._ask("nvmlDeviceGetClockInfo", _SM),
            memory_mhz=self._ask("nvmlDeviceGetClockInfo", _MEMORY),
            watts=self._ask("nvmlDeviceGetPowerUsage") / 1e3,
            celsius=self._ask("nvmlDeviceGetTemperature", 0),
            busy=busy.gpu,
        )

    def _ask(self, name: str, *which: int) -> int:
        value = ctypes.c_uint()
        self._call(name, self._handle, *which, ctypes.byref(value))
        return value.value

    def _call(self, name: str, *arguments: object) -> None:
        try:
            status = getattr(self._library, name)(*arguments)
        except AttributeError as error:
            raise OSError(f"{name} is not in {self._library}") from error
        if status:
            raise OSError(f"{name} answered {status}")


def gpus(library: str = LIBRARY) -> list[dict[str, Any]]:
    """Every GPU as :meth:`Nvml.describe` has it; none where there is no driver."""
    found: list[dict[str, Any]] = []
    with suppress(OSError):
        while True:
            found.append(Nvml(library, len(found)).describe())
    return found
