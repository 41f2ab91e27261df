"""Put the weights into a graph that was traced without them."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from export.errors import ExportError, WeightsError
from export.networks.base import Network

INLINE_MAX = 1 << 31
"""Bytes: an ONNX file with its weights inside must stay under this (a protobuf cannot be larger)."""


def attach_inline(model: ir.Model, network: Network) -> None:
    """Give every blank initializer its tensor, inside the model, cast to the type the graph was traced in.

    Memory: all of the network's weights. (Large models keep theirs beside the graph, as external data.)
    Raises WeightsError where the weights lack a tensor or have another shape, ExportError beyond 2 GB.
    """
    blanks = {name: value for name, value in model.graph.initializers.items() if value.const_value is None}
    total = sum(_size(value) for value in blanks.values())
    if total >= INLINE_MAX:
        raise ExportError(f"{network.name} has {total:,} bytes of weights; an ONNX file can hold {INLINE_MAX:,}")
    for name, value in blanks.items():
        value.const_value = _tensor(network, name, value)


def _size(value: ir.Value) -> int:
    itemsize = value.dtype.itemsize if value.dtype is not None else 0
    return int(itemsize * math.prod(_dimensions(value)))


def _dimensions(value: ir.Value) -> tuple[int, ...]:
    """The shape of a weight, which is never symbolic."""
    return tuple(int(dimension) for dimension in value.shape or () if isinstance(dimension, int))


def _tensor(network: Network, name: str, value: ir.Value) -> ir.Tensor[Any]:
    key = network.weight_key(name)
    if key is None:
        raise WeightsError(f"{network.weights.source} lacks {name}; download or save it again")
    wanted = _dimensions(value)
    found = network.weights[key].shape
    if found != wanted:
        raise WeightsError(f"{network.weights.source}: {key} has shape {list(found)}, {list(wanted)} is needed")
    if value.dtype != ir.DataType.FLOAT:
        raise ExportError(f"{network.name}: the weight {name} was traced as {value.dtype}, FLOAT is needed")
    tensor = network.weights.read(key).float()
    if not tensor.isfinite().all():
        raise WeightsError(f"{network.weights.source}: {key} has values that are not finite; download it again")
    return ir.Tensor(tensor.numpy(), name=name)
