"""Give a graph that was traced without weights its weights: inside it, or beside it in constant memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from export.assembling.stored import INLINE_MAX, StoredTensors, blanks, plan_stored, size_of
from export.errors import ExportError
from export.networks.base import Network
from export.reporting import Report, silent
from export.weights.external import StoredFile, write_external
from export.weights.layout import layout

if TYPE_CHECKING:
    import torch


def data_name(network: str) -> str:
    """The file of a network's external data, in the folder of its graph."""
    return f"{network}.safetensors"


def attach_external(
    model: ir.Model, network: Network, folder: Path, identity: str = "", report: Report = silent
) -> StoredFile:
    """Store what every blank initializer asks for (:mod:`export.assembling.stored`) in ``folder``, for the graph.

    The graph must then be written into the same folder: the location is a plain file name. identity: digest of the
    weights; a file that was begun for the same graph and the same identity is continued, a finished one is kept.

    Memory: runs of at most :data:`export.weights.files.CHUNK`, a few copies. Raises WeightsError where the weights lack
    a tensor, have another shape, are not finite or overflow; ExportError where the disk rejects.
    """
    plan = plan_stored(model, network)
    entries = [stored.entry for stored in plan.values()]
    tensors = StoredTensors(network.weights, plan)
    stored = write_external(folder / data_name(network.name), entries, tensors.runs, identity, report)
    values, offsets = blanks(model), layout(entries).offsets
    for entry in entries:
        value = values[entry.name]
        if value.dtype is None:
            continue  # plan_stored rejected it.
        value.const_value = ir.ExternalTensor(
            data_name(network.name),
            offsets[entry.name],
            entry.size,
            value.dtype,
            shape=ir.Shape(entry.shape),
            name=entry.name,
            base_dir=folder,
        )
    return stored


def attach_inline(model: ir.Model, network: Network) -> None:
    """Give every blank initializer its tensor (see :mod:`export.assembling.stored`), inside the model.

    Memory: all of the network's weights. Large models keep theirs beside the graph:
    :func:`attach_external`.
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
