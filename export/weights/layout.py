"""How a safetensors file that is going to be written is laid out: its entries, its header, its bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.errors import WeightsError
from export.weights.files import DTYPES, METADATA

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Entry:
    """A tensor that is going to be written. dtype: the format's name (a key of ``DTYPES``)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        size = DTYPES[self.dtype][1]
        for dimension in self.shape:
            size *= dimension
        return size


def header(entries: Sequence[Entry], metadata: Mapping[str, str], alignment: int) -> bytes:
    """The head of a safetensors file that holds ``entries`` in that order, its length field included.

    alignment: bytes that its length is a multiple of, so that the first tensor starts there.
    Raises WeightsError where a name comes twice.
    """
    table: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for entry in entries:
        if entry.name in table:
            raise WeightsError(f"the tensor {entry.name!r} is announced twice")
        table[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.size],
        }
        offset += entry.size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text


def raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor as the format holds them."""
    import torch

    if not tensor.numel():
        return memoryview(b"")
    data: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data
