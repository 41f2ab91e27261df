"""What is stored for each weight of a graph: a cast of it, or FP8 rows and the scales that they were divided by.

A graph's initializers without values say it by name and type: a floating one is a cast of the weight of that name; an
FP8 one, ``X``, is the weight of that name by rows; ``X_scale`` beside it are those rows' scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import onnx_ir as ir

from export.errors import ExportError, WeightsError
from export.fp8.numbers import SCALE_SUFFIX, row_scales, to_codes
from export.networks.base import Network
from export.weights.files import Weights, all_finite, row_chunks, torch_dtype
from export.weights.layout import Entry

if TYPE_CHECKING:
    import torch

FLOATS: Mapping[ir.DataType, str] = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
}
"""Types that a weight can be cast to, and their names in safetensors."""

FP8 = "F8_E4M3"

INLINE_MAX = 1 << 31
"""Bytes: an ONNX file with its weights inside must stay under this (a protobuf cannot be larger)."""


class Kind(Enum):
    """How a stored tensor comes from its weight."""

    CAST = "cast"
    ROWS = "rows in FP8"
    SCALES = "scales of those rows"


@dataclass(frozen=True)
class Stored:
    """One tensor to be stored. key: of its weight; scales: the safetensors type of the scales, where there are any."""

    entry: Entry
    key: str
    kind: Kind
    scales: str = "F32"


def blanks(model: ir.Model) -> dict[str, ir.Value]:
    """The initializers that still need a value, by name."""
    return {name: value for name, value in model.graph.initializers.items() if value.const_value is None}


def plan_stored(model: ir.Model, network: Network) -> dict[str, Stored]:
    """What the blank initializers of a graph ask for, by name; scales come right after their rows.

    From headers alone. Raises WeightsError where the weights lack a tensor or have another shape, ExportError where
    the graph asks for a type that cannot be stored.
    """
    values, plan = blanks(model), dict[str, Stored]()
    for name, value in values.items():
        if value.dtype == ir.DataType.FLOAT8E4M3FN:
            scales = values.get(name + SCALE_SUFFIX)
            if scales is None or scales.dtype is None or scales.dtype not in FLOATS:
                raise ExportError(f"{network.name}: {name} is FP8 and has no {name + SCALE_SUFFIX} of a float type")
            kind, shape = FLOATS[scales.dtype], _shape(value)
            key = _key(network, name, shape)
            plan[name] = Stored(Entry(name, FP8, shape), key, Kind.ROWS, kind)
            if _shape(scales) != shape[:1]:
                raise ExportError(f"{network.name}: {scales.name} must have one scale a row of {name}")
            plan[name + SCALE_SUFFIX] = Stored(Entry(name + SCALE_SUFFIX, kind, shape[:1]), key, Kind.SCALES, kind)
        elif value.dtype is None or value.dtype not in FLOATS:
            known = ", ".join(dtype.name for dtype in FLOATS)
            raise ExportError(f"{network.name}: the weight {name} is of type {value.dtype}; allowed: {known}")
        elif not _is_scale(name, values):
            shape = _shape(value)
            plan[name] = Stored(Entry(name, FLOATS[value.dtype], shape), _key(network, name, shape), Kind.CAST)
    return plan


class StoredTensors:
    """The stored tensors by name, by runs of rows. Memory: one run, and the scales of the rows last read."""

    def __init__(self, weights: Weights, plan: Mapping[str, Stored]) -> None:
        self._weights = weights
        self._plan = plan
        self._scales: tuple[str, torch.Tensor] | None = None

    def runs(self, name: str) -> Iterator[torch.Tensor]:
        """One tensor by runs of rows, in order. Raises WeightsError where a value is not finite, or would not be."""
        stored = self._plan[name]
        if stored.kind is Kind.SCALES:
            yield self._scales_of(stored)
        elif stored.kind is Kind.ROWS:
            yield from self._fp8(stored)
        else:
            yield from self._cast(stored)

    def whole(self, name: str) -> torch.Tensor:
        """One tensor."""
        import torch

        entry = self._plan[name].entry
        runs = [run.reshape(-1) for run in self.runs(name)]
        return (torch.cat(runs) if runs else torch.empty(0, dtype=torch_dtype(entry.dtype))).reshape(entry.shape)

    def _cast(self, stored: Stored) -> Iterator[torch.Tensor]:
        dtype = torch_dtype(stored.entry.dtype)
        for start, stop in row_chunks(stored.entry.shape):
            rows = self._weights.rows_float32(stored.key, start, stop).to(dtype)
            if not all_finite(rows):
                raise WeightsError(
                    f"{self._weights.source}: {stored.key} has values beyond the range of {stored.entry.dtype}; "
                    "build with --precision fp32 or fp8, or for a GPU with bf16"
                )
            yield rows

    def _fp8(self, stored: Stored) -> Iterator[torch.Tensor]:
        import torch

        found = [torch.empty(0, dtype=torch_dtype(stored.scales))]
        for start, stop in row_chunks(stored.entry.shape):
            rows = self._weights.rows_float32(stored.key, start, stop)
            scales = row_scales(rows, torch_dtype(stored.scales))
            found.append(scales)
            yield to_codes(rows, scales)
        self._scales = (stored.key, torch.cat(found))

    def _scales_of(self, stored: Stored) -> torch.Tensor:
        """The scales: those kept from quantising the rows just before, else computed anew (a run was continued)."""
        import torch

        if self._scales is not None and self._scales[0] == stored.key:
            return self._scales[1]
        shape, dtype = self._weights[stored.key].shape, torch_dtype(stored.scales)
        scales = [row_scales(self._weights.rows_float32(stored.key, *run), dtype) for run in row_chunks(shape)]
        return torch.cat(scales) if scales else torch.ones(shape[:1], dtype=dtype)


def _is_scale(name: str, values: Mapping[str, ir.Value]) -> bool:
    weight = values.get(name.removesuffix(SCALE_SUFFIX)) if name.endswith(SCALE_SUFFIX) else None
    return weight is not None and weight.dtype == ir.DataType.FLOAT8E4M3FN


def _shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a weight, which is never symbolic."""
    return tuple(int(dimension) for dimension in value.shape or () if isinstance(dimension, int))


def _key(network: Network, name: str, shape: tuple[int, ...]) -> str:
    """The key of a weight, which must have that shape."""
    key = network.weight_key(name)
    if key is None:
        raise WeightsError(f"{network.weights.source} lacks {name}; download or save it again")
    found = network.weights[key].shape
    if found != shape:
        raise WeightsError(f"{network.weights.source}: {key} has shape {list(found)}, {list(shape)} is needed")
    return key


def size_of(plan: Mapping[str, Stored]) -> int:
    """Bytes of all stored tensors."""
    return sum(stored.entry.size for stored in plan.values())
