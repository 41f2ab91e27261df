"""The noise that every runtime of ArcFlow starts an image from, as a pipeline of diffusers takes it."""

from __future__ import annotations

import torch
from torch import Tensor

from arcflow.errors import PipelineError
from foundation.noise import SEED_LIMIT, normal


def image_noise(seed: int, tokens: int, channels: int) -> Tensor:
    """Standard normal noise of one image, float32 [1, tokens, channels] on the CPU: what a pipeline's ``latents`` take.

    Raises PipelineError unless 0 <= seed < 2^64.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise PipelineError(f"seed is {seed}; it must be from 0 to 2^64 - 1")
    return torch.from_numpy(normal(seed, tokens, channels))[None]
