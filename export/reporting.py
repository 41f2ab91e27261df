"""How work tells how far it is, and how libraries are kept from telling what they think."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Report(Protocol):
    """Told what is being done, how much of it is done and in all (0: not known), and what it is at."""

    def __call__(self, what: str, done: int, total: int, note: str = "", /) -> object: ...


Count = Callable[[int, int], object]
"""Told (done, in all)."""


def silent(*_: object) -> None:
    """Tells nobody."""


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Keep these loggers to errors, and Python's warnings to themselves."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
