"""What the scenarios share: what is alive in the played driver, and how an action fails."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from foundation import noise

COUNT = 1000


def alive() -> list[int]:
    """Graphs, events, streams, contexts, modules, blocks on the device, pinned blocks; then actions that wait."""
    counts = (ctypes.c_int * 7)()
    library = ctypes.CDLL("libcuda.so.1")
    queued = library.fake_cuda_alive(counts)
    return [*counts, queued]


def message(kind: type[Exception], action: Callable[[], object]) -> str:
    """What an action that must fail says."""
    try:
        action()
    except kind as error:
        return str(error)
    raise AssertionError("it did not fail")


def noise_of(seed: int, count: int = COUNT) -> Any:
    """The noise's first values."""
    return noise.normal_at(seed, np.arange(count, dtype=np.uint64))
