"""Which key or column of a record holds the prompt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from arcflow.errors import PromptsError

KEYS = ("prompt", "caption", "text")
"""Looked for in this order where none is named."""


def choose_key(found: Iterable[str], key: str | None, where: Path | str) -> str:
    """The key that is named, or else the first of KEYS that is there. Raises PromptsError."""
    there = list(found)
    for wanted in KEYS if key is None else (key,):
        if wanted in there:
            return wanted
    listed = ", ".join(map(str, there[:8])) or "nothing"
    if key is not None:
        raise PromptsError(f"{where} has no {key} (it has: {listed}); name another --prompt-key")
    raise PromptsError(
        f"{where} has none of {', '.join(KEYS)} (it has: {listed}); name what holds the prompts with --prompt-key"
    )
