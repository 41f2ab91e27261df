"""Put the weights into a graph that was traced without them: inside the model, for files under 2 GB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from export.assembling.stored import INLINE_MAX, StoredTensors, blanks, plan_stored, size_of
from export.errors import ExportError
from export.networks.base import Network

if TYPE_CHECKING:
    import torch


def attach_inline(model: ir.Model, network: Network) -> None:
    """Give every blank initializer its tensor (see :mod:`export.assembling.stored`), inside the model.

    Memory: all of the network's weights. Large models keep theirs beside the graph:
    :func:`export.passes.attach_external.attach_external`.
    Raises WeightsError where the weights lack a tensor, have another shape or overflow, ExportError beyond 2 GB.
    """
    plan = plan_stored(model, network)
    total = size_of(plan)
    if total >= INLINE_MAX:
        raise ExportError(f"{network.name} has {total:,} bytes of weights; an ONNX file can hold {INLINE_MAX:,}")
    tensors, values = StoredTensors(network.weights, plan), blanks(model)
    for name in plan:
        values[name].const_value = ir.Tensor(_array(tensors.whole(name)), dtype=values[name].dtype, name=name)


def _array(tensor: torch.Tensor) -> Any:
    """The tensor in numpy, which has no bfloat16 or FP8 of its own."""
    import ml_dtypes
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return tensor.numpy()
