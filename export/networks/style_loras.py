"""Style LoRAs in the reference of a student's parity: added in torch, apart from the merge that is being checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from export.networks.base import Network

if TYPE_CHECKING:
    from export.weights.lora import StyleLora

_VELOCITY_HEAD = "proj_out"
"""The teacher's last linear; the means of every mode of the momentum head stand in for it."""


def with_style_loras(network: Network, loras: Sequence[StyleLora]) -> Network:
    """The same network, its reference with ``loras`` added as ``scale * B @ A`` in float32.

    The reference must be a module whose attribute ``network`` is the student.
    """

    def reference() -> Callable[..., Sequence[torch.Tensor]]:
        module: Any = network.reference()
        for lora in loras:
            _add(module.network, lora)
        wrapper: Callable[..., Sequence[torch.Tensor]] = module
        return wrapper

    return replace(network, reference=reference) if loras else network


@torch.no_grad()
def _add(student: Any, lora: StyleLora) -> None:
    for module, (a, b) in lora.modules.items():
        delta = lora.scale * (lora.tensors.read(b).float() @ lora.tensors.read(a).float())
        if module == _VELOCITY_HEAD:
            head = student.proj_out
            head.means.weight.unflatten(0, (head.modes, -1)).add_(delta)
        else:
            student.get_submodule(module).weight.add_(delta)
