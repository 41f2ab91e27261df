"""Memory addresses that are the same each time, for a program that is about to be started.

TensorRT keeps some tensors in tables ordered by address and writes them to the plan in that order. Linux randomises
addresses, so that plans of equal inputs differ, unless the builder's process is started without that.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NO_RANDOM_ADDRESSES = 0x0040000
"""ADDR_NO_RANDOMIZE of Linux's <sys/personality.h>."""

_ASK = 0xFFFFFFFF


@contextmanager
def fixed_addresses() -> Iterator[bool]:
    """Programs that are started inside have the same addresses each time, if the value is True.

    It is False where the system has no such thing or forbids it (some containers do). This process keeps its own.
    """
    now = _personality(_ASK)
    fixed = now >= 0 and _personality(now | _NO_RANDOM_ADDRESSES) >= 0
    try:
        yield fixed
    finally:
        if fixed:
            _personality(now)


def _personality(value: int) -> int:
    """Linux's personality(2): set it, or ask; -1 where that fails."""
    if not sys.platform.startswith("linux"):
        return -1
    return int(ctypes.CDLL(None).personality(ctypes.c_ulong(value)))
