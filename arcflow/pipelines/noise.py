"""The noise that every runtime of ArcFlow starts an image from, in the world of torch (DESIGN.md, Noise).

Philox4x32 with ten rounds over the index of an element, the first value of Box-Muller in float64, rounded to float32.
Held to ``tests/golden/noise.json``, as the others are.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcflow.errors import PipelineError

SEED_LIMIT = 1 << 64
"""Seeds are 0 .. 2^64 - 1."""
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BELOW_MANTISSA = np.uint64(11)


def image_noise(seed: int, tokens: int, channels: int) -> Tensor:
    """Standard normal noise of one image, float32 [1, tokens, channels] on the CPU: what a pipeline's ``latents`` take.

    An element depends on the seed and its own index alone. Raises PipelineError unless 0 <= seed < 2^64.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise PipelineError(f"seed is {seed}; it must be from 0 to 2^64 - 1")
    values = noise_at(seed, np.arange(tokens * channels, dtype=np.uint64))
    return torch.from_numpy(values).reshape(1, tokens, channels)


def noise_at(seed: int, index: NDArray[np.uint64]) -> NDArray[np.float32]:
    """The elements ``index`` (uint64 [n]) of that seed's noise: float32 [n]."""
    a, b = index & _WORD, index >> _HALF
    c = d = np.zeros_like(index)
    first, second = seed & 0xFFFFFFFF, seed >> 32
    for turn in range(_ROUNDS):
        key0, key1 = ((key + turn * step) & 0xFFFFFFFF for key, step in zip((first, second), _WEYL, strict=True))
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = (right >> _HALF) ^ b ^ np.uint64(key0), right & _WORD
        c, d = (left >> _HALF) ^ d ^ np.uint64(key1), left & _WORD
    radius = np.sqrt(-2.0 * np.log(_unit(a, b)))
    return (radius * np.cos(2.0 * math.pi * _unit(c, d))).astype(np.float32)


def _unit(low: NDArray[np.uint64], high: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Two words -> float64 in (0, 1)."""
    mantissa = (low | (high << _HALF)) >> _BELOW_MANTISSA
    return (mantissa.astype(np.float64) + 0.5) * 2.0**-53
