"""Running a network that does not fit into memory: each layer's weights are there only while it computes.

The module is built without memory; accelerate's hooks fetch a layer's tensors from the (merged) weights right before
its forward and let them go after it. Where everything fits, it is held instead, which is faster by far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

from export.errors import WeightsError
from export.folders.places import available_memory
from export.networks.base import INNER, Network

if TYPE_CHECKING:
    import torch
    from torch import nn

HOLD_SHARE = 0.6
"""Share of the free memory that weights may take before they are streamed; activations need the rest."""


class Placement(StrEnum):
    """Where weights are while a network runs: HOLD: all in memory; STREAM: one layer at a time."""

    HOLD = "hold"
    STREAM = "stream"


class LazyTensors(Mapping[str, "torch.Tensor"]):
    """A network's parameters by the traced module's names, read (and merged) when they are asked for, in one dtype."""

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        self._network = network
        self._dtype = dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        key = self._network.weight_key(name.removeprefix(INNER + "."))
        if key is None:
            raise WeightsError(f"{self._network.weights.source} lacks {name}; download or save it again")
        return self._network.weights.read(key).to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return (f"{INNER}.{name}" for name in self._network.weights)

    def __len__(self) -> int:
        return len(self._network.weights)


def open_module(network: Network, dtype: torch.dtype, device: torch.device, placement: Placement) -> nn.Module:
    """The network's module in evaluation mode, ready to run on ``device``; its inputs may lie anywhere.

    It is called as the exported graph is: by the names of ``ports_in``. Raises WeightsError where a tensor is missing
    or has another shape (when streaming: as soon as the layer runs).
    """
    import torch
    from accelerate import cpu_offload, init_empty_weights
    from accelerate.utils import set_module_tensor_to_device

    with init_empty_weights(include_buffers=False):
        module = network.build(dtype).eval().requires_grad_(False)
    tensors = LazyTensors(network, dtype)
    if placement is Placement.STREAM:
        streamed: nn.Module = cpu_offload(module, device, state_dict=tensors)
        return streamed
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        value = tensors[name]
        if value.shape != parameter.shape:
            raise WeightsError(
                f"{network.weights.source}: {name} has shape {list(value.shape)}, {list(parameter.shape)} is needed"
            )
        set_module_tensor_to_device(module, name, device, value=value)
    with torch.no_grad():
        return module.to(device)


def choose_placement(network: Network, dtype: torch.dtype, device: torch.device) -> Placement:
    """HOLD where the weights in ``dtype`` take at most a stated share of the device's free memory, else STREAM."""
    return Placement.HOLD if weight_bytes(network, dtype) <= HOLD_SHARE * free_memory(device) else Placement.STREAM


def weight_bytes(network: Network, dtype: torch.dtype) -> int:
    """Bytes of all of the network's weights in ``dtype``."""
    return sum(math.prod(info.shape) for info in network.weights.values()) * dtype.itemsize


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken now on a device: of the GPU, or of the machine."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory() or 4 << 30  # Not Linux: stream what is larger than a few GiB.
