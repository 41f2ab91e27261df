"""What a part says: one JSON object a line on standard output, as soon as it knows something."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from foundation.measuring import as_line
from gpu.card import Card, shown

KEY = "arcflow_gpu"
"""Marks a line as a record; whatever else a part prints is passed on as it is."""


class SkipPartError(Exception):
    """The part, or a piece of it, cannot be run on this machine; the message says what is missing."""


class Emit(Protocol):
    """Takes one record."""

    def __call__(self, what: str, show: str, held: bool | None = None, **figures: Any) -> None:
        """what: the measured thing; show: its figure for the table; held: whether an aim or a check was held."""
        ...


@dataclass(frozen=True)
class Printer:
    """Records of one part on standard output. card: what the card was like since the record before."""

    part: str
    card: Card = dict

    def __call__(self, what: str, show: str, held: bool | None = None, **figures: Any) -> None:
        """Print one record, with the card's clocks, power and temperature."""
        card = self.card()
        if card:
            figures["card"], show = dict(card), show + shown(card)
        self.line("measured", what=what, show=show, held=held, **figures)

    def line(self, kind: str, **fields: Any) -> None:
        """Print a record of another kind ("skipped", "failed")."""
        print(as_line({KEY: self.part, "kind": kind, **fields}), flush=True)


def parse(line: str) -> dict[str, Any] | None:
    """The record of a line, or None where it is none."""
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and KEY in record else None


def guarded(printer: Printer, what: str, work: Callable[[], None]) -> bool:
    """Do a piece of a part; what goes wrong in it is a record, and the next piece is still tried. Whether it went well.

    Blind on purpose: whatever breaks on a machine that is seen once, the rest of the list must still run.
    """
    try:
        work()
    except SkipPartError as reason:
        printer.line("skipped", what=what, show=str(reason))
        return True
    except Exception as error:  # noqa: BLE001
        text = " ".join(f"{type(error).__name__}: {error}".split())
        printer.line("failed", what=what, show=text[:300], trace=traceback.format_exc()[-3000:])
        return False
    return True
