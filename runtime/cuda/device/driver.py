"""NVIDIA's driver through ``cuda.bindings``: every status becomes an error that a user can act on."""

from __future__ import annotations

from typing import Any

from runtime.cuda.errors import EXHAUSTED, LESS, CaptureRefusedError, DeviceError, DeviceMemoryError
from runtime.cuda.interface import DeviceInfo

MINIMUM_DRIVER = (13, 0)
"""The CUDA release that a driver must know: the kernels are compiled by a compiler of that line."""

INSTALL = "pip install 'arcflow[cuda]'"
ELSE = "or use a bundle for the target cpu"
_NO_GPU = f"CUDA finds no GPU: see nvidia-smi and $CUDA_VISIBLE_DEVICES, {ELSE}"

_OUT_OF_MEMORY = 2
_NO_DEVICE = 100
_BAD_IMAGES = {200, 209, 218, 222}  # An image, no binary for this GPU, PTX, PTX of a newer release.
_MISMATCHES = {34, 803, 804}  # A stub library; library and kernel module differ; neither fits this GPU.
_CAPTURES = range(900, 910)
_LOST = {700, 702, 710, *range(714, 720)}
"""Statuses of work that failed on the GPU, after which the context takes nothing more."""


class Driver:
    """The functions of ``cuda.bindings.driver``, with their statuses checked."""

    def __init__(self, api: Any) -> None:
        self.api = api

    def __call__(self, what: str, function: str, *arguments: Any) -> Any:
        """Call ``function`` and return what it returns besides the status (None, a value or a tuple).

        what: what is being done, for the message ("copying to the GPU"). Raises DeviceError.
        """
        try:
            status, *values = getattr(self.api, function)(*arguments)
        except (AttributeError, RuntimeError) as error:  # Not in this release of the package, or not in this driver.
            raise DeviceError(
                f"{what}: {function} is not there ({error}); update the driver and cuda-bindings"
            ) from error
        if int(status):
            raise self.failure(what, int(status))
        return values[0] if len(values) == 1 else tuple(values) or None

    def quietly(self, function: str, *arguments: Any) -> None:
        """Call ``function`` where nothing is to be done about its failure: on the way out."""
        try:
            getattr(self.api, function)(*arguments)
        except (AttributeError, RuntimeError):
            return

    def failure(self, what: str, status: int) -> DeviceError:
        """The error for a status other than success."""
        named = self.describe(status)
        if status == _OUT_OF_MEMORY:
            return DeviceMemoryError(f"{what}: {EXHAUSTED}; {LESS}")
        if status in _CAPTURES:
            return CaptureRefusedError(f"{what}: a CUDA graph cannot hold it, {named}")
        if status in _LOST:
            return DeviceError(
                f"{what}: work on the GPU failed, {named}; nothing more can run in this process, start it again"
            )
        if status in _BAD_IMAGES:
            return DeviceError(f"{what}: the driver does not take the kernels, {named}; update the NVIDIA driver")
        return DeviceError(f"{what}: {named}")

    def describe(self, status: int) -> str:
        """ "CUDA_ERROR_NO_DEVICE (100: no CUDA-capable device is detected)"."""
        try:
            number = self.api.CUresult(status)
            name = self.api.cuGetErrorName(number)[1]
            text = self.api.cuGetErrorString(number)[1]
        except (ValueError, RuntimeError):
            return f"CUDA error {status}"
        return f"{_text(name)} ({status}: {_text(text)})"


def load_driver() -> Driver:
    """The driver, started. Raises DeviceError where there is none, or one that is too old or does not start."""
    try:
        from cuda.bindings import driver as api
    except ImportError as error:
        raise DeviceError(f"a GPU needs the package cuda-bindings ({error}): {INSTALL}, {ELSE}") from error
    try:
        status, version = api.cuDriverGetVersion()
        if int(status) == 0 and version < MINIMUM_DRIVER[0] * 1000 + MINIMUM_DRIVER[1] * 10:
            raise DeviceError(
                f"the NVIDIA driver knows CUDA {release(version)}, and CUDA {MINIMUM_DRIVER[0]}.{MINIMUM_DRIVER[1]} or "
                f"newer is needed: update it, {ELSE}"
            )
        (status,) = api.cuInit(0)
    except (RuntimeError, OSError) as error:  # The bindings look for the library at the first call.
        raise DeviceError(
            f"a GPU is needed, and there is no NVIDIA driver on this machine (no libcuda): install one, {ELSE}"
        ) from error
    driver = Driver(api)
    if int(status) == _NO_DEVICE:
        raise DeviceError(_NO_GPU)
    if int(status) in _MISMATCHES:
        raise DeviceError(
            f"the NVIDIA driver is not installed well, {driver.describe(int(status))}: install it again or restart the "
            f"machine, {ELSE}"
        )
    if int(status):
        raise DeviceError(f"the NVIDIA driver does not start, {driver.describe(int(status))}: see nvidia-smi, {ELSE}")
    return driver


def find_device(driver: Driver, ordinal: int) -> Any:
    """The GPU of that number. Raises DeviceError, with the numbers that there are."""
    count = driver("looking for GPUs", "cuDeviceGetCount")
    if count == 0:
        raise DeviceError(_NO_GPU)
    if not 0 <= ordinal < count:
        raise DeviceError(f"there is no GPU {ordinal}; this machine has {'0' if count == 1 else f'0 to {count - 1}'}")
    return driver("choosing the GPU", "cuDeviceGet", ordinal)


def describe_device(driver: Driver, ordinal: int = 0) -> DeviceInfo:
    """What a GPU is; nothing is allocated on it. Raises DeviceError."""
    device = find_device(driver, ordinal)
    what = f"asking GPU {ordinal} what it is"

    def attribute(name: str) -> int:
        kind = getattr(driver.api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(driver(what, "cuDeviceGetAttribute", kind, device))

    return DeviceInfo(
        name=_text(driver(what, "cuDeviceGetName", 256, device)),
        capability=f"sm{attribute('COMPUTE_CAPABILITY_MAJOR')}{attribute('COMPUTE_CAPABILITY_MINOR')}",
        driver=release(driver(what, "cuDriverGetVersion")),
        memory=int(driver(what, "cuDeviceTotalMem", device)),
        l2_bytes=attribute("L2_CACHE_SIZE"),
        multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
    )


def release(version: int) -> str:
    """ "13.0" for 13000."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _text(value: Any) -> str:
    """Text of what the bindings give: bytes, padded with zeros."""
    return value.split(b"\0")[0].decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
