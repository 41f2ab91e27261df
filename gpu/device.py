"""The runtime's device, where there is a GPU at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu.records import SkipPartError

if TYPE_CHECKING:
    from runtime.cuda.device import CudaDevice


def need_gpu() -> None:
    """Raise SkipPartError where torch sees no GPU: nothing can be measured. What fails after this is a fault."""
    import torch

    if not torch.cuda.is_available():
        raise SkipPartError("torch finds no GPU here")


def open_gpu() -> CudaDevice:
    """The first GPU as the runtime opens it. Raises SkipPartError, DeviceError."""
    need_gpu()
    from runtime.cuda.device import open_device

    return open_device(0)
