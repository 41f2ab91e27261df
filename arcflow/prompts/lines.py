"""Prompts in text files: one a line, or one JSON object a line. Read once to check them; kept is where each begins."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from arcflow.errors import PromptsError
from arcflow.prompts.keys import choose_key

_Parse = Callable[[bytes, int], str]
"""(a line, its number from 1) -> its prompt, "" for none. Raises PromptsError."""


class _Lines(Sequence[str]):
    """The lines of a file that have a prompt."""

    def __init__(self, path: Path, parse: _Parse) -> None:
        self._path, self._parse = path, parse
        self._starts, self._numbers = array("q"), array("q")
        position = 0
        try:
            with path.open("rb") as stream:
                for number, line in enumerate(stream, start=1):
                    if parse(line, number):
                        self._starts.append(position)
                        self._numbers.append(number)
                    position += len(line)
        except OSError as error:
            raise PromptsError(f"cannot read the prompts {path}: {error.strerror or error}") from error

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._starts[index])
                return self._parse(stream.readline(), self._numbers[index])
        except OSError as error:
            raise PromptsError(f"cannot read the prompts {self._path} any more: {error.strerror or error}") from error


def text_prompts(path: Path) -> Sequence[str]:
    """Those of a UTF-8 text file, one a line; blank lines and those that begin with # are left out."""

    def parse(line: bytes, number: int) -> str:
        text = _decode(line, path, number).strip()
        return "" if text.startswith("#") else text

    return _Lines(path, parse)


def json_prompts(path: Path, key: str | None = None) -> Sequence[str]:
    """Those of a file of JSON objects, one a line; blank lines and blank prompts are left out."""

    def parse(line: bytes, number: int) -> str:
        text = _decode(line, path, number).strip()
        return prompt_of(text, key, f"line {number} of {path}") if text else ""

    return _Lines(path, parse)


def prompt_of(text: str | bytes, key: str | None, where: str) -> str:
    """The prompt of one JSON object. Raises PromptsError."""
    try:
        record = json.loads(text)
    except ValueError as error:
        raise PromptsError(f"{where} is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise PromptsError(f'{where} is no JSON object; each must be one, such as {{"prompt": "a red fox"}}')
    name = choose_key(record, key, where)
    value = record[name]
    if not isinstance(value, str):
        raise PromptsError(f"{where}: {name} is {value!r}; it must be a text")
    return " ".join(value.split())


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise PromptsError(f"line {number} of {path} is not UTF-8; save the file as UTF-8") from error
