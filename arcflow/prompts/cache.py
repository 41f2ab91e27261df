"""Encodings on disk, made once and then read instead of text encoders: shards of safetensors.

A folder belongs to one list of prompts and one set of text encoders, by their digest. A shard is written whole or not
at all, so that a caching that was killed goes on after the last one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from arcflow.errors import PromptsError
from arcflow.prompts.encodings import empty_prompt, size_of
from arcflow.prompts.lists import Prompts, digest
from arcflow.sources.text import Encoding, TextEncoders
from foundation.files import atomic_file, sha256_tree

SHARD = 64
"""Prompts a shard."""
ABOUT = "encodings.json"
_SAMPLE = 8
_EMPTY = "empty"

Tell = Callable[[str], object]
"""Told in one line what happens."""


@dataclass(frozen=True)
class CachedEncodings:
    """The encodings of ``count`` prompts in a folder. Raises PromptsError where a shard is missing or damaged."""

    folder: Path
    key: str
    count: int

    def __len__(self) -> int:
        return self.count

    def get(self, numbers: Sequence[int], coming: Callable[[], Iterable[int]] = tuple) -> list[Encoding]:
        """Those of the prompts with these numbers."""
        return [self._read(_shard(self.folder, number // SHARD), str(number)) for number in numbers]

    def empty(self) -> Encoding:
        """That of the empty prompt."""
        return self._read(self.folder / f"{_EMPTY}.safetensors", _EMPTY)

    def _read(self, path: Path, name: str) -> Encoding:
        handle, names = _opened(path, self.key)
        found = {key.partition(".")[2]: handle.get_tensor(key) for key in names.get(name, ())}
        if not found:
            raise PromptsError(f"{path} lacks the encoding of prompt {name}; delete it and cache it again")
        return found


def cache_encodings(
    folder: Path, prompts: Prompts, text: TextEncoders, tell: Tell, part: tuple[int, int] = (0, 1)
) -> CachedEncodings:
    """Encode what the folder lacks, and return the whole of it.

    tell: is told the size before anything large is written, and how far it is; part: (number, of how many) where
    several processes share the work, who must all be done before the result is used. Raises PromptsError where the
    folder belongs to other prompts or text encoders, or has no room.
    """
    key = _key(prompts, text)
    _claim(folder, key, len(prompts))
    shards = range(part[0], -(-len(prompts) // SHARD), part[1])
    left = [shard for shard in shards if not _is_done(_shard(folder, shard), key)]
    if left:
        _tell_size(folder, prompts, text, len(left) * part[1], tell)
    for done, shard in enumerate(left, start=1):
        first = shard * SHARD
        numbers = range(first, min(first + SHARD, len(prompts)))
        found = zip(numbers, text.encode([prompts[number] for number in numbers]), strict=True)
        _write(_shard(folder, shard), {str(number): encoding for number, encoding in found}, key)
        tell(f"encodings: {done} of {len(left)} shards")
    empty = folder / f"{_EMPTY}.safetensors"
    if part[0] == 0 and text.base.architecture.EMPTY is not None and not _is_done(empty, key):
        _write(empty, {_EMPTY: next(iter(text.encode([empty_prompt(text)])))}, key)
    text.close()
    return CachedEncodings(folder, key, len(prompts))


def _key(prompts: Prompts, text: TextEncoders) -> str:
    """Digest of everything that encodings depend on."""
    base = text.base
    parts = {name: sha256_tree(base.folder / name) for name in base.architecture.TEXT_PARTS}
    known = {"architecture": base.architecture.NAME, "tokens": text.tokens, "dtype": str(text.dtype), **parts}
    return hashlib.sha256(json.dumps({**known, "prompts": digest(prompts)}, sort_keys=True).encode()).hexdigest()


def _claim(folder: Path, key: str, count: int) -> None:
    """Make the folder these prompts', or see that it is."""
    path = folder / ABOUT
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps({"key": key, "prompts": count}) + "\n", encoding="utf-8")
        return
    except (OSError, ValueError) as error:
        raise PromptsError(f"cannot read {path}: {error}; delete the folder, or give another one") from error
    if not isinstance(found, dict) or found.get("key") != key:
        raise PromptsError(
            f"{folder} holds the encodings of other prompts or text encoders; give --cache-encodings another folder, "
            "or delete this one"
        )


def _tell_size(folder: Path, prompts: Prompts, text: TextEncoders, shards: int, tell: Tell) -> None:
    """Say what the missing shards take, from a few of the prompts. Raises PromptsError if there is no room."""
    step = max(1, len(prompts) // _SAMPLE)
    sizes = [size_of(encoding) for encoding in text.encode([prompts[n] for n in range(0, len(prompts), step)])]
    need = sum(sizes) / len(sizes) * min(len(prompts), shards * SHARD)
    free = shutil.disk_usage(folder).free
    room = f"about {need / 2**20:,.0f} MiB more in {folder} ({free / 2**20:,.0f} MiB free)"
    tell(f"encodings of {len(prompts):,} prompts: {room}")
    if need > free:
        raise PromptsError(
            f"{folder} has {free / 2**30:.1f} GiB free, and the encodings take about {need / 2**30:.1f} GiB; free "
            "some, give fewer prompts, or leave out --cache-encodings"
        )


def _shard(folder: Path, number: int) -> Path:
    return folder / f"encodings-{number:06d}.safetensors"


def _write(path: Path, encodings: dict[str, Encoding], key: str) -> None:
    tensors = {f"{name}.{part}": tensor for name, each in encodings.items() for part, tensor in each.items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"key": key})


def _is_done(path: Path, key: str) -> bool:
    """Whether the shard is there, whole and of these prompts."""
    try:
        with safe_open(path, framework="pt") as handle:
            return _key_of(handle) == key
    except (SafetensorError, OSError):
        return False


def _key_of(handle: Any) -> str | None:
    return (handle.metadata() or {}).get("key")


@lru_cache(maxsize=64)
def _opened(path: Path, key: str) -> tuple[Any, dict[str, list[str]]]:
    """A shard and its keys by prompt. Raises PromptsError."""
    try:
        handle: Any = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise PromptsError(f"{path} is missing or damaged ({error}); delete it and cache it again") from error
    if _key_of(handle) != key:
        raise PromptsError(f"{path} belongs to other prompts or text encoders; delete it and cache it again")
    names: dict[str, list[str]] = {}
    for name in handle.keys():  # noqa: SIM118  # No mapping.
        names.setdefault(name.partition(".")[0], []).append(name)
    return handle, names
