"""Clocks, power and temperature of the card while something is measured, asked of NVIDIA's management library.

Its C interface is what nvidia-smi asks as well and comes with every driver, so no package is needed. Nothing is set.
"""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

LIBRARY = "libnvidia-ml.so.1"
INTERVAL = 0.1
_SM, _MEMORY = 1, 2  # NVML_CLOCK_SM, NVML_CLOCK_MEM
_BUSY = 50
"""Percent of its time in which the card had work, from which on a look counts: figures are of a card at work."""

Card = Callable[[], Mapping[str, float]]
"""What the card was like since the last call; empty where it cannot be asked."""


@dataclass(frozen=True)
class Look:
    """One look: clocks of multiprocessors and memory in MHz, watts, degrees Celsius, percent of the time at work."""

    sm_mhz: int
    memory_mhz: int
    watts: float
    celsius: int
    busy: int


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Nvml:
    """The first card, through NVML."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Raises OSError where there is no such library, or it does not start."""
        self._library = ctypes.CDLL(library)
        self._handle = ctypes.c_void_p()
        self._call("nvmlInit_v2")
        self._call("nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(self._handle))

    def look(self) -> Look:
        """As the card is now. Raises OSError."""
        busy = _Utilization()
        self._call("nvmlDeviceGetUtilizationRates", self._handle, ctypes.byref(busy))
        return Look(
            sm_mhz=self._ask("nvmlDeviceGetClockInfo", _SM),
            memory_mhz=self._ask("nvmlDeviceGetClockInfo", _MEMORY),
            watts=self._ask("nvmlDeviceGetPowerUsage") / 1e3,
            celsius=self._ask("nvmlDeviceGetTemperature", 0),
            busy=busy.gpu,
        )

    def _ask(self, name: str, *which: int) -> int:
        value = ctypes.c_uint()
        self._call(name, self._handle, *which, ctypes.byref(value))
        return value.value

    def _call(self, name: str, *arguments: object) -> None:
        try:
            status = getattr(self._library, name)(*arguments)
        except AttributeError as error:
            raise OSError(f"{name} is not in {self._library}") from error
        if status:
            raise OSError(f"{name} answered {status}")


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
