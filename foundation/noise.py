"""The noise an image starts from: counter-based, so that every runtime of ArcFlow can make the same values.

The definition, which is a part of the format, is in DESIGN.md ("Noise"): Philox4x32 with ten rounds (Salmon et al., SC
2011) over the index of an element, then the first value of Box-Muller in float64, rounded to float32.

Each element depends on the seed and on its own index alone: not on the image's size, the batch, or the machine.
The last bit of a float64 logarithm or cosine may differ between libraries; it survives the rounding to float32
about once in 10^8 values.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SEED_LIMIT = 1 << 64
"""Seeds are 0 .. 2^64 - 1."""

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MANTISSA_SHIFT = np.uint64(11)
_UNIT = 2.0**-53


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox4x32-10 of counters [..., 4] under one key: words [..., 4]. All 32-bit values, held in uint64."""
    c0, c1, c2, c3 = (counter[..., word] for word in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> _HALF) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _HALF) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=-1)


def normal(seed: int, tokens: int, channels: int) -> NDArray[np.float32]:
    """Standard normal noise of one image, float32 [tokens, channels]. ``seed`` is in 0 .. 2^64 - 1."""
    return normal_at(seed, np.arange(tokens * channels, dtype=np.uint64)).reshape(tokens, channels)


def normal_at(seed: int, index: NDArray[np.uint64]) -> NDArray[np.float32]:
    """The elements ``index`` [n] of the image's noise, float32 [n]."""
    zero = np.zeros_like(index)
    counter = np.stack((index & _LOW, index >> _HALF, zero, zero), axis=-1)
    r = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    u1 = _uniform(r[..., 0], r[..., 1])
    u2 = _uniform(r[..., 2], r[..., 3])
    return (np.sqrt(-2.0 * np.log(u1)) * np.cos(2.0 * math.pi * u2)).astype(np.float32)


def image_seeds(seed: int, count: int) -> tuple[int, ...]:
    """Seeds of the ``count`` images of a request: seed + j modulo 2^64."""
    return tuple((seed + j) % SEED_LIMIT for j in range(count))


def _uniform(low: NDArray[np.uint64], high: NDArray[np.uint64]) -> NDArray[np.float64]:
    mantissa = (low | (high << _HALF)) >> _MANTISSA_SHIFT
    return (mantissa.astype(np.float64) + 0.5) * _UNIT
