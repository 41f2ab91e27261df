"""Packed tokens: every architecture sees a latent as tokens of 2x2 patches, channel-major."""

from __future__ import annotations

from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H/2 * W/2, C*4]: tokens of 2x2 patches, channel-major (index c*4 + p)."""
    b, c, h, w = latents.shape
    patches = latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, (h // 2) * (w // 2), c * 4)


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """[B, rows*columns, C*4] -> [B, C, 2*rows, 2*columns], the inverse of :func:`pack`."""
    b, _, channels = tokens.shape
    patches = tokens.reshape(b, rows, columns, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(b, channels // 4, 2 * rows, 2 * columns)
