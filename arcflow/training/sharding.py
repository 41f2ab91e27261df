"""A student on several processes: each has all of it (DDP), or each a share of every parameter (FSDP2)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from arcflow.students import Student


def shard(student: Student, device: torch.device, processes: int) -> None:
    """Leave this process its share of every parameter, frozen or trained; a block is whole while it runs.

    What is exchanged has the parameters' own dtypes, so that results are those of one process. Parameters on the meta
    device stay there, to be filled by :func:`arcflow.sources.weights.fill`.
    """
    # No result of a block is changed in place; the remark would come with every block.
    warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
    mesh = init_device_mesh(device.type, (processes,))
    for block in student.blocks():
        fully_shard(block, mesh=mesh)
    # Also after a forward without a backward: else its last layers would be kept as they were before a step.
    fully_shard(student, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(student, "teacher_velocity")


def replicate(module: nn.Module, processes: int) -> nn.Module:
    """The module as several processes train it together; as it is where it is sharded, or alone."""
    if processes == 1 or isinstance(module, FSDPModule):
        return module
    # All start alike: nothing is sent before the first step, which for the frozen weights would take long.
    return DistributedDataParallel(module, gradient_as_bucket_view=True, forward_sync_buffers=False, init_sync=False)


@contextmanager
def piece(module: nn.Module, last: bool) -> Iterator[None]:
    """The context of one forward and backward of an iteration: gradients are exchanged in the last one only."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        yield
    elif isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():  # Around the forward too: DDP decides there whether the backward will exchange.
            yield
    else:
        yield


def whole(tensor: Tensor) -> Tensor:
    """A tensor whose rows may lie on several processes, all of which must ask; no copy where it is one already."""
    gathered: Any = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return gathered  # type: ignore[no-any-return]
