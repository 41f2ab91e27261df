"""The runtime's device and torch's, where there is a GPU at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu.catalogue import Options
from gpu.records import SkipPartError

if TYPE_CHECKING:
    from runtime.cuda.device.gpu import CudaDevice


def need_gpu() -> None:
    """Raise SkipPartError where the driver finds no GPU: nothing can be measured. What fails after this is a fault."""
    from runtime.cuda.device.driver import find_device, load_driver
    from runtime.cuda.errors import DeviceError

    try:
        find_device(load_driver(), 0)
    except DeviceError as error:
        raise SkipPartError(str(error)) from error


def open_gpu() -> CudaDevice:
    """The first GPU as the runtime opens it. Raises SkipPartError, DeviceError."""
    need_gpu()
    from runtime.cuda.device.gpu import open_device

    return open_device(0)


def torch_device(options: Options) -> str:
    """ "cuda", or "cpu" where it is only rehearsed. Raises SkipPartError where torch is not here, or sees no GPU."""
    try:
        import torch
    except ImportError as error:
        raise SkipPartError(f"needs torch, not installed here ({error})") from error
    if torch.cuda.is_available():
        return "cuda"
    if options.rehearse:
        return "cpu"
    raise SkipPartError("torch finds no GPU here")
