"""Prompts from wherever they are: one read-only sequence of strings, of which only what is asked for is read."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

from arcflow.errors import PromptsError
from arcflow.prompts.columns import parquet_prompts, saved_prompts
from arcflow.prompts.lines import json_prompts, text_prompts
from arcflow.prompts.shards import tar_prompts

SHIPPED = Path(__file__).parent
KINDS = "a .txt, .jsonl, .parquet or .tar file, or a folder of .parquet or .tar files or of a saved data set"

Prompts = Sequence[str]
"""Prompts by number, none of them blank."""


class Joined(Sequence[str]):
    """Several lists, one after the other."""

    def __init__(self, parts: Sequence[Prompts]) -> None:
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, index)
        return self._parts[part][index - (self._ends[part - 1] if part else 0)]


def open_prompts(sources: Sequence[str | Path], key: str | None = None) -> Prompts:
    """Open lists by path, or by the name of one that comes with the project ("default", "chinese").

    key: the column or key that holds the prompt, where a source has several (default: prompt, caption or text).
    Raises PromptsError for what is not there, cannot be read, or has no prompts.
    """
    parts: list[Prompts] = []
    for source in sources:
        part = _open(Path(source).expanduser(), str(source), key)
        if not len(part):
            raise PromptsError(f"{source} has no prompts; give --prompts a source that has some")
        parts.append(part)
    if not parts:
        raise PromptsError(f"no prompts are named; give --prompts {KINDS}")
    return parts[0] if len(parts) == 1 else Joined(parts)


def shipped() -> list[str]:
    """Names of the lists that come with the project."""
    return sorted(path.stem for path in SHIPPED.glob("*.txt"))


def digest(prompts: Iterable[str]) -> str:
    """Hexadecimal sha256 of all prompts in their order."""
    found = hashlib.sha256()
    for prompt in prompts:
        found.update(prompt.encode() + b"\0")
    return found.hexdigest()


def _open(path: Path, name: str, key: str | None) -> Prompts:
    if name in shipped():
        return text_prompts(SHIPPED / f"{name}.txt")
    if not path.exists():
        raise PromptsError(f"there are no prompts at {path}; give {KINDS}, or a name: {', '.join(shipped())}")
    if path.is_dir():
        return _open_folder(path, key)
    match path.suffix.lower():
        case ".txt":
            return text_prompts(path)
        case ".jsonl" | ".ndjson":
            return json_prompts(path, key)
        case ".parquet":
            return parquet_prompts([path], key)
        case ".tar":
            return tar_prompts([path], key)
    raise PromptsError(f"{path} is none of the kinds of prompts that can be read; give {KINDS}")


def _open_folder(path: Path, key: str | None) -> Prompts:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return saved_prompts(path, key)
    if tables := sorted(path.glob("*.parquet")):
        return parquet_prompts(tables, key)
    if shards := sorted(path.glob("*.tar")):
        return tar_prompts(shards, key)
    raise PromptsError(f"the folder {path} holds no data set, .parquet or .tar files; give {KINDS}")
