"""Writing safetensors tensor by tensor, in constant memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from export.errors import WeightsError
from export.weights import DTYPES, METADATA

if TYPE_CHECKING:
    import torch

_ALIGNMENT = 8
"""Bytes: the header is padded with blanks so that the first tensor starts at a multiple of this, unless told."""


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


class TensorWriter:
    """Writes the entries that were announced, in that order, and digests the file on the way.

    Use it as a context manager; leaving the block without all of its tensors raises WeightsError.
    """

    def __init__(self, path: Path, entries: Sequence[Entry], metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._pending = list(reversed(entries))
        self._digest = hashlib.sha256()
        self._metadata = metadata
        self._header = header(entries, metadata or {})
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._stream = self.path.open("wb")
        self._put(self._header)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        if kind is None and self._pending:
            raise WeightsError(f"{self.path}: {self._pending[-1].name} was announced but not written")

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next tensor; its name, dtype and shape must be those announced."""
        if not self._pending:
            raise WeightsError(f"{self.path}: {name} was not announced")
        entry = self._pending.pop()
        given = (name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        wanted = (entry.name, DTYPES[entry.dtype][0], entry.shape)
        if given != wanted:
            raise WeightsError(f"{self.path}: {wanted} was announced next, {given} was given")
        self._put(raw(tensor))

    def hexdigest(self) -> str:
        """sha256 of what was written so far; after the block, of the whole file."""
        return self._digest.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        if self._stream is None:
            raise WeightsError(f"{self.path} is not open: use the writer in a with block")
        self._digest.update(data)
        self._stream.write(data)


def header(entries: Sequence[Entry], metadata: Mapping[str, str], alignment: int = _ALIGNMENT) -> bytes:
    """The head of a safetensors file that holds ``entries`` in that order, its length field included.

    alignment: what its length is a multiple of. Raises WeightsError where a name comes twice.
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
