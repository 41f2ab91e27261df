"""The numbers that condition a backbone, noise level and guidance, as it saw them in training.

The numpy twin of :mod:`arcflow.architectures.conditioning` and of ``as_trained`` in :mod:`arcflow.architectures`; the
golden values are ``tests/golden/conditioning.json``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.float32]

_TIME_SCALE = np.float32(1000)


def to_bfloat16(values: Levels) -> Levels:
    """The nearest bfloat16 of each finite number, ties to even, as float32."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def scaled_bfloat16(values: Levels) -> Levels:
    """What a backbone makes of each that rounds to bfloat16, multiplies by 1000 and rounds again; over 1000."""
    return to_bfloat16(to_bfloat16(values) * _TIME_SCALE) / _TIME_SCALE
