"""How a safetensors file that is going to be written is laid out: its entries, its header, its bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from export.errors import WeightsError
from export.weights.files import DTYPES, METADATA

if TYPE_CHECKING:
    import torch


ALIGNMENT = 64
"""Bytes: where the first tensor starts is a multiple of this."""


@dataclass(frozen=True)
class Entry:
    """A tensor that is going to be written. dtype: the format's name (a key of ``DTYPES``)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype][1]


@dataclass(frozen=True)
class Layout:
    """Where everything lies. offsets: bytes from the file's start, by name, in the file's order; size: of the file."""

    header: bytes
    offsets: Mapping[str, int]
    size: int


_TORCH = MappingProxyType({"format": "pt"})


def layout(entries: Sequence[Entry], metadata: Mapping[str, str] = _TORCH) -> Layout:
    """Where ``entries`` lie in their file, whose head includes its length field. metadata: what the header says more.

    Tensors lie by falling size of element, so that each starts at a multiple of its element's. Raises WeightsError
    where a name comes twice.
    """
    table: dict[str, Any] = {METADATA: dict(metadata)}
    offset = 0
    for entry in sorted(entries, key=lambda entry: -DTYPES[entry.dtype][1]):
        if entry.name in table:
            raise WeightsError(f"the tensor {entry.name!r} is announced twice")
        bounds = [offset, offset + entry.size]
        table[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": bounds}
        offset += entry.size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    offsets = {name: len(head) + about["data_offsets"][0] for name, about in table.items() if name != METADATA}
    return Layout(head, offsets, len(head) + offset)


def raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor as the format holds them."""
    import torch

    if not tensor.numel():
        return memoryview(b"")
    data: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data
