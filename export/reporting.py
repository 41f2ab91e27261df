"""How work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Report(Protocol):
    """Told what is being done, how much of it is done and in all (0: not known), and what it is at."""

    def __call__(self, what: str, done: int, total: int, note: str = "", /) -> object: ...


Count = Callable[[int, int], object]
"""Told (done, in all)."""


def silent(*_: object) -> None:
    """Tells nobody."""
