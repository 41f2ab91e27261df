"""PNG files whose bytes depend on their content alone: no date, no library's choice of filters.

The C++ core (``runtime/native/core/numerics/png.cpp``) makes the same bytes where both use the same release of zlib.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""[height, width, 3], RGB."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TRUE_COLOUR = struct.pack(">BBBBB", 8, 2, 0, 0, 0)
"""Eight bits a channel, RGB, deflate, adaptive filters, not interlaced."""

_LEVEL = 6
_BLOCK = 32
"""Rows filtered at once: few enough to stay in a core's cache."""


def encode(pixels: Pixels, text: Mapping[str, str]) -> bytes:
    """The PNG of uint8 [H, W, 3] with ``text`` in its text chunks, by keyword (Latin-1, 1 to 79 characters)."""
    height, width, _ = pixels.shape
    chunks = [_chunk(b"IHDR", struct.pack(">II", width, height) + _TRUE_COLOUR)]
    chunks += [_text(keyword, value) for keyword, value in text.items()]
    chunks += [_chunk(b"IDAT", zlib.compress(_filtered(pixels), _LEVEL)), _chunk(b"IEND", b"")]
    return _SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def _text(keyword: str, value: str) -> bytes:
    """``tEXt`` where Latin-1 can say it, else ``iTXt`` (uncompressed, no language, no translated keyword)."""
    name = keyword.encode("latin-1")
    try:
        return _chunk(b"tEXt", name + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", name + b"\0\0\0\0\0" + value.encode("utf-8"))


def _filtered(pixels: Pixels) -> bytes:
    """Each row with the number of its filter before it: of the five the one whose differences sum to the least."""
    height, width, _ = pixels.shape
    rows = np.zeros((height + 1, 3 * (width + 1)), dtype=np.uint8)  # A row of zeros above, a pixel of zeros before.
    rows[1:, 3:] = pixels.reshape(height, 3 * width)
    result = np.empty((height, 1 + 3 * width), dtype=np.uint8)
    for first in range(0, height, _BLOCK):
        block = rows[first : first + _BLOCK + 1]
        candidates = _candidates(block)
        # A difference of 255 is one of -1.
        costs = np.minimum(candidates, np.negative(candidates)).sum(axis=2, dtype=np.int64)
        chosen = costs.argmin(axis=0)
        result[first : first + _BLOCK, 0] = chosen
        result[first : first + _BLOCK, 1:] = candidates[chosen, np.arange(len(chosen))]
    return result.tobytes()


def _candidates(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the filters None, Sub, Up, Average and Paeth make of all rows but the first: [5, rows - 1, bytes]."""
    here, left, up, corner = rows[1:, 3:], rows[1:, :-3], rows[:-1, 3:], rows[:-1, :-3]
    result = np.empty((5, *here.shape), dtype=np.uint8)
    result[0] = here
    np.subtract(here, left, out=result[1])
    np.subtract(here, up, out=result[2])
    np.subtract(here, (left >> 1) + (up >> 1) + (left & up & 1), out=result[3])
    across, down = up.astype(np.int16) - corner, left.astype(np.int16) - corner
    # Paeth: the neighbour that is nearest to left + up - corner; left before up before corner.
    to_left, to_up, to_corner = np.abs(across), np.abs(down), np.abs(across + down)
    nearest = np.where(to_up <= to_corner, up, corner)
    nearest = np.where((to_left <= to_up) & (to_left <= to_corner), left, nearest)
    np.subtract(here, nearest, out=result[4])
    return result
