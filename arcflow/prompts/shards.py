"""Prompts in WebDataset shards: .tar files whose samples have a .txt or a .json beside whatever else they have.

Kept is where each prompt lies; images between them are skipped, not read.
"""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Sequence
from pathlib import Path

from arcflow.errors import PromptsError
from arcflow.prompts.lines import prompt_of

_TEXT, _JSON = ".txt", ".json"


class _Members(Sequence[str]):
    """One member a sample, of several shards."""

    def __init__(self, paths: Sequence[Path], key: str | None) -> None:
        self._paths, self._key = paths, key
        self._columns = self._shards, self._starts, self._sizes, self._texts = (
            array("q"), array("q"), array("q"), array("b"),
        )  # fmt: skip
        for shard, path in enumerate(paths):
            self._index(shard, path)

    def _index(self, shard: int, path: Path) -> None:
        samples: dict[str, tuple[int, int, bool]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    stem, kind = _split(member.name)
                    if member.isfile() and (kind == _TEXT or (kind == _JSON and stem not in samples)):
                        samples[stem] = (member.offset_data, member.size, kind == _TEXT)
                    tar.members = []  # type: ignore[attr-defined]  # Else it keeps every member of a shard.
        except (tarfile.TarError, OSError) as error:
            raise PromptsError(f"cannot read the shard {path}: {error}; shards are plain .tar files") from error
        for start, size, text in samples.values():
            for column, value in zip(self._columns, (shard, start, size, text), strict=True):
                column.append(value)
            if not self[len(self) - 1]:
                for column in self._columns:
                    column.pop()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        path = self._paths[self._shards[index]]
        where = f"the sample at byte {self._starts[index]} of {path}"
        try:
            with path.open("rb") as stream:
                stream.seek(self._starts[index])
                data = stream.read(self._sizes[index])
            return " ".join(data.decode().split()) if self._texts[index] else prompt_of(data, self._key, where)
        except OSError as error:
            raise PromptsError(f"cannot read the shard {path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise PromptsError(f"{where} is not UTF-8") from error


def tar_prompts(paths: Sequence[Path], key: str | None = None) -> Sequence[str]:
    """Those of the shards; of a sample with both, the .txt. Blank ones are left out. Raises PromptsError."""
    return _Members(paths, key)


def _split(name: str) -> tuple[str, str]:
    """A member's sample and kind: what stands before and after the first dot of its last part, as WebDataset has it."""
    folder, slash, file = name.rpartition("/")
    stem, dot, kind = file.partition(".")
    return folder + slash + stem, dot + kind.lower()
