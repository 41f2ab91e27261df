"""Packed tokens, latents and pixels: how one becomes the other. Pure numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def unpack(tokens: Floats, rows: int, columns: int, patch: int) -> Floats:
    """Tokens [B, rows*columns, C*patch^2] -> latents [B, C, rows*patch, columns*patch].

    Tokens are row-major; inside a token the index is channel-major: c*patch^2 + dy*patch + dx.
    """
    batch, _, packed = tokens.shape
    channels = packed // patch**2
    grid = tokens.reshape(batch, rows, columns, channels, patch, patch).transpose(0, 3, 1, 4, 2, 5)
    return grid.reshape(batch, channels, rows * patch, columns * patch)


def image_ids(rows: int, columns: int) -> NDArray[np.float32]:
    """Position ids of the image tokens, float32 [rows*columns, 3]: (0, row, column)."""
    ids = np.zeros((rows, columns, 3), dtype=np.float32)
    ids[..., 1] = np.arange(rows)[:, None]
    ids[..., 2] = np.arange(columns)
    return ids.reshape(rows * columns, 3)


def centred_image_ids(rows: int, columns: int) -> NDArray[np.float32]:
    """Position ids of the image tokens about the middle, float32 [rows*columns, 3]: (0, row, column).

    They run from -ceil(n/2) to floor(n/2) - 1: an odd side has one more before the middle (QwenEmbedRope, scale_rope).
    """
    ids = image_ids(rows, columns)
    ids -= np.array([0, rows - rows // 2, columns - columns // 2], dtype=np.float32)
    return ids


def text_positions(rows: int, columns: int, tokens: int) -> NDArray[np.float32]:
    """Positions of text beside an image with centred ids, float32 [tokens]: they begin where the longer side ends."""
    return np.arange(tokens, dtype=np.float32) + np.float32(max(rows // 2, columns // 2))


def to_pixels(images: Floats) -> NDArray[np.uint8]:
    """[B, 3, H, W] in about [-1, 1] -> uint8 [B, H, W, 3], clipped, rounded to nearest."""
    levels = np.rint(np.clip(images * 0.5 + 0.5, 0.0, 1.0) * 255.0)
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(0, 2, 3, 1))
