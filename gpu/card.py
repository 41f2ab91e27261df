"""Clocks, power and temperature of the card while something is measured. Nothing of the card is set."""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping

from foundation.nvml import LIBRARY, Look, Nvml

INTERVAL = 0.1
_BUSY = 50
"""Percent of its time in which the card had work, from which on a look counts: figures are of a card at work."""

Card = Callable[[], Mapping[str, float]]
"""What the card was like since the last call; empty where it cannot be asked."""


def summary(looks: list[Look]) -> dict[str, float]:
    """Medians of the looks at a card at work, and its greatest power and temperature; of all looks where none was."""
    used = [look for look in looks if look.busy >= _BUSY] or looks
    if not used:
        return {}
    return {
        "sm_mhz": statistics.median(look.sm_mhz for look in used),
        "least_sm_mhz": min(look.sm_mhz for look in used),
        "memory_mhz": statistics.median(look.memory_mhz for look in used),
        "watts": round(statistics.median(look.watts for look in used), 1),
        "greatest_watts": round(max(look.watts for look in used), 1),
        "celsius": max(look.celsius for look in used),
        "looks": len(used),
        "at_work": sum(look.busy >= _BUSY for look in used),
    }


def shown(card: Mapping[str, float]) -> str:
    """The summary in a few words, for the table; "" where there is none."""
    if not card:
        return ""
    return f" [{card['sm_mhz']:.0f} MHz, {card['watts']:.0f} W, {card['celsius']:.0f} C]"


@contextlib.contextmanager
def watched(library: str = LIBRARY) -> Iterator[Card]:
    """In the block the card is looked at ten times a second by a thread of its own."""
    try:
        card = Nvml(library)
        looks = [card.look()]
    except OSError:
        yield dict
        return
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(INTERVAL):
            with contextlib.suppress(OSError):
                looks.append(card.look())

    def since_last() -> dict[str, float]:
        taken = looks.copy()
        del looks[: len(taken) - 1]  # The last one stays: the next record may be there before another look.
        return summary(taken[1:] or taken)

    thread = threading.Thread(target=watch, name="card", daemon=True)
    thread.start()
    try:
        yield since_last
    finally:
        stop.set()
        thread.join()
