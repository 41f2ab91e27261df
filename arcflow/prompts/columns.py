"""Prompts in columns: Parquet files, and data sets that the library ``datasets`` saved. Only that column is read."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arcflow.errors import PromptsError
from arcflow.prompts.keys import choose_key

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_ROWS = 1024
"""Rows that are looked at together."""


class _Rows(Sequence[str]):
    """The rows of a column whose prompt is not blank; ``read`` gives those of a range."""

    def __init__(self, count: int, read: Callable[[int, int], list[Any]], where: Path, key: str) -> None:
        self._read = read
        self._rows = array("q")
        for start in range(0, count, _ROWS):
            for row, value in enumerate(read(start, min(count, start + _ROWS)), start=start):
                if value is not None and not isinstance(value, str):
                    raise PromptsError(f"{where}: {key} of row {row} is {value!r}; it must be a text")
                if value and value.strip():
                    self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self._rows[index]
        return " ".join(self._read(row, row + 1)[0].split())


def parquet_prompts(paths: Sequence[Path], key: str | None = None) -> Sequence[str]:
    """Those of Parquet files, whose columns must agree. Raises PromptsError."""
    pyarrow = _library(paths[0])
    from pyarrow import parquet

    with _readable(paths[0]):
        name = choose_key(parquet.read_schema(paths[0]).names, key, paths[0])
        tables = [parquet.read_table(path, columns=[name], memory_map=True) for path in paths]
        column = pyarrow.concat_tables(tables).column(name)
    return _rows(column, paths[0], name)


def saved_prompts(folder: Path, key: str | None = None) -> Sequence[str]:
    """Those of a data set that the library ``datasets`` saved in a folder; of several splits those of "train".

    Its files stay where they are and are looked into. Raises PromptsError.
    """
    pyarrow = _library(folder)
    if (folder / _SPLITS).is_file():
        splits = _read(folder / _SPLITS, "splits")
        if "train" not in splits and len(splits) != 1:
            raise PromptsError(f"{folder} has the splits {', '.join(splits)}; give the folder of one of them")
        folder /= "train" if "train" in splits else splits[0]
    files = [folder / str(each.get("filename")) for each in _read(folder / _STATE, "_data_files")]
    if not files:
        raise PromptsError(f"the data set {folder} has no files; save it again")
    with _readable(folder):
        readers = [pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))) for file in files]
        name = choose_key(readers[0].schema.names, key, folder)
        column = pyarrow.concat_tables([reader.read_all().select([name]) for reader in readers]).column(name)
    return _rows(column, folder, name)


def _rows(column: Any, where: Path, key: str) -> _Rows:
    return _Rows(len(column), lambda start, stop: column.slice(start, stop - start).to_pylist(), where, key)


def _library(source: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc  # Not of itself there.
    except ImportError as error:
        raise PromptsError(f"{source} holds prompts in columns: `pip install pyarrow` to read them") from error
    return pyarrow


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    """Turn what the library raises into one error."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, KeyError) as error:
        raise PromptsError(f"cannot read the prompts {source}: {error}") from error


def _read(path: Path, key: str) -> list[Any]:
    """A list that a data set's own files name."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PromptsError(f"{path} does not describe a saved data set ({error}); save it again") from error
    if not isinstance(found, list):
        raise PromptsError(f"{path} does not describe a saved data set; save it again")
    return found
