"""Reading safetensors tensor by tensor: headers are checked whole before any tensor is read.

A :class:`TensorFile` is one file, a :class:`TensorSet` the weights of one network, in one file or in shards with an
index as diffusers and transformers write them. Memory in use is that of the one tensor last read.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import WeightsError

if TYPE_CHECKING:
    import torch

METADATA = "__metadata__"
INDEX_SUFFIX = ".safetensors.index.json"

DTYPES: Mapping[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""Type names of the format: (torch's name, bytes an element)."""

CHUNK = 16 << 20
"""Bytes: how much of one tensor, counted as float32, is worked on at a time."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")

_HEADER_MAX = 100_000_000
"""Bytes: a longer header is rejected, as the format's own library does."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a header names it. dtype: the format's name (a key of ``DTYPES``); offset: bytes from file start."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype][1]


@dataclass(frozen=True)
class TensorFile:
    """One safetensors file whose header was read and found whole."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """A tensor in the file's dtype, or its rows ``start`` to ``stop`` (not included).

        Raises WeightsError when the file changed since it was opened.
        """
        import torch

        info = self.tensors[name]
        shape, offset = info.shape, info.offset
        if shape and shape[0]:
            offset += start * (info.size // shape[0])
            shape = ((shape[0] if stop is None else stop) - start, *shape[1:])
        data, dtype = bytearray(math.prod(shape) * DTYPES[info.dtype][1]), torch_dtype(info.dtype)
        try:
            with self.path.open("rb") as stream:
                stream.seek(offset)
                count = stream.readinto(data)
        except OSError as error:
            raise WeightsError(f"cannot read {self.path}: {error.strerror or error}") from error
        if count != len(data):
            raise WeightsError(f"{self.path} was cut while it was read; download or save it again")
        return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)


class Weights(Mapping[str, TensorInfo]):
    """The tensors of one network by name: on disk (:class:`TensorSet`), or computed from what is on disk.

    source: the file or folder that messages name.
    """

    source: Path

    @property
    def size(self) -> int:
        """Bytes of all tensors together."""
        return sum(info.size for info in self.values())

    @abstractmethod
    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` (not included) of one tensor's first dimension, of the dtype of its TensorInfo.

        A tensor without dimensions is one row.
        """

    def read(self, name: str) -> torch.Tensor:
        """One whole tensor."""
        shape = self[name].shape
        return self.read_rows(name, 0, shape[0] if shape else 1)

    def rows_float32(self, name: str, start: int, stop: int) -> torch.Tensor:
        """The same rows as float32, the caller's to change. Raises WeightsError where a value is not finite."""
        import torch

        rows = self.read_rows(name, start, stop).to(torch.float32)
        if not all_finite(rows):
            raise WeightsError(f"{self.source}: {name} has values that are not finite; download or save it again")
        return rows


@dataclass(frozen=True)
class TensorSet(Weights):
    """The weights of one network by name, over all of its files."""

    source: Path
    files: tuple[TensorFile, ...]
    _home: Mapping[str, TensorFile]

    def __getitem__(self, name: str) -> TensorInfo:
        return self._home[name].tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows in the file's dtype."""
        return self._home[name].read(name, start, stop)


def torch_dtype(name: str) -> torch.dtype:
    """torch's type by the format's name."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[name][0])
    return dtype


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches one of some patterns (fnmatch)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class Selected(Weights):
    """The tensors whose names match one of some patterns (fnmatch), or all others (``without``)."""

    def __init__(self, whole: Weights, patterns: Sequence[str], without: bool = False) -> None:
        self.source = whole.source
        self._whole = whole
        self._names = dict.fromkeys(name for name in whole if matches(name, patterns) != without)

    def __getitem__(self, name: str) -> TensorInfo:
        if name not in self._names:
            raise KeyError(name)
        return self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, name: str) -> torch.Tensor:
        """One whole tensor."""
        return self._whole.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one tensor."""
        return self._whole.read_rows(name, start, stop)

    def rows_float32(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows as float32."""
        return self._whole.rows_float32(name, start, stop)


def row_chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Bounds (start, stop) of the runs of rows of a shape that stay within ``CHUNK``, in order.

    A single row may be larger. A shape without dimensions is one row; one without elements has no runs.
    """
    rows, width = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    if not rows * width:
        return
    step = max(1, CHUNK // (4 * width))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is infinite or NaN."""
    import torch

    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
        return True  # One pass: a sum is finite only where all of its terms are. It may overflow, so look again.
    return bool(torch.isfinite(tensor).all())


def open_file(path: Path) -> TensorFile:
    """Open one safetensors file and check its header against its length. Raises WeightsError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(_HEADER_MAX, size - 8):
                raise WeightsError(f"{path} is truncated or is no safetensors file; download or save it again")
            header = json.loads(stream.read(length))
    except FileNotFoundError as error:
        what = pickled(path.parent) or "download or save it again, as safetensors"
        raise WeightsError(f"there is no weights file {path}; {what}") from error
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise WeightsError(f"the header of {path} is damaged ({error}); download or save it again") from error
    if not isinstance(header, dict):
        raise WeightsError(f"the header of {path} is damaged (no JSON object); download or save it again")
    metadata = header.pop(METADATA, {})
    tensors, end = {}, 0
    entries = [(name, *_entry(path, name, entry)) for name, entry in header.items()]
    for name, dtype, shape, begin, finish in sorted(entries, key=lambda entry: entry[3:]):
        tensors[name] = TensorInfo(dtype, shape, 8 + length + begin)
        if begin != end or finish != begin + tensors[name].size:
            raise WeightsError(f"the header of {path} is damaged (bounds of {name}); download or save it again")
        end = finish
    if size != 8 + length + end:
        raise WeightsError(
            f"{path} is truncated: it has {size} bytes, its header asks for {8 + length + end}; "
            "download or save it again"
        )
    return TensorFile(path, tensors, metadata if isinstance(metadata, dict) else {})


def open_folder(folder: Path) -> TensorSet:
    """Open the weights in a folder: the shards of its index, or its single safetensors file. Raises WeightsError."""
    if not folder.is_dir():
        raise WeightsError(f"there is no folder {folder}; give the folder of a diffusers pipeline")
    indices = sorted(folder.glob("*" + INDEX_SUFFIX))
    if len(indices) == 1:
        return _open_shards(indices[0])
    files = sorted(folder.glob("*.safetensors"))
    if len(indices) + len(files) != 1:
        found = ", ".join(path.name for path in (*indices, *files)) or "none"
        what = f"; {told}" if (told := pickled(folder)) and not files else ""
        raise WeightsError(f"{folder} must hold one .safetensors file, or shards with one index; found: {found}{what}")
    return tensor_set(files[0])


def pickled(folder: Path) -> str:
    """What to do where the weights in a folder are pickles ("" where it has none)."""
    names = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
    if not names:
        return ""
    return (
        f"{names[0]} there is a pickle, which may hold code and is not read: get the same weights as safetensors, or, "
        "if you trust the file, open it with the library that made it and save it with safe_serialization=True"
    )


def tensor_set(path: Path) -> TensorSet:
    """The tensors of one file. Raises WeightsError."""
    file = open_file(path)
    return TensorSet(path, (file,), dict.fromkeys(file.tensors, file))


def _open_shards(index: Path) -> TensorSet:
    try:
        mapping = json.loads(index.read_text())["weight_map"]
        names = sorted(set(mapping.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is damaged ({error}); download or save it again") from error
    odd = next((n for n in names if not isinstance(n, str) or Path(n).name != n), None)
    if odd is not None:
        raise WeightsError(f"{index} names the shard {odd!r}, which is not a plain file name in its folder")
    shards = {name: open_file(index.parent / name) for name in names}
    for key, name in mapping.items():
        if key not in shards[name].tensors:
            raise WeightsError(f"{index.parent / name} lacks {key!r}, which its index promises; download it again")
    home: dict[str, TensorFile] = {}
    for shard in shards.values():
        for key in shard.tensors:
            if key in home:
                raise WeightsError(f"{key!r} is in both {home[key].path} and {shard.path}; download them again")
            home[key] = shard
    return TensorSet(index, tuple(shards.values()), home)


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of one header entry, checked for kind only."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"the header of {path} is damaged (entry {name!r}); download or save it again") from error
    if dtype not in DTYPES:
        raise WeightsError(f"{path}: {name} is of type {dtype!r}; known are {', '.join(DTYPES)}")
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
        raise WeightsError(f"the header of {path} is damaged (entry {name!r}); download or save it again")
    return dtype, shape, begin, end
