"""PNG bytes that depend on their content alone."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from runtime import png

Pixels = NDArray[np.uint8]

PIXELS = arrays(np.uint8, st.tuples(st.integers(1, 70), st.integers(1, 9), st.just(3)))


def chunks(data: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG by kind, their checksums checked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + content),)
        found[kind] = content
        at += 12 + length
    return found


@settings(max_examples=50, deadline=None)
@given(PIXELS)
def test_the_pixels_come_back(pixels: Pixels) -> None:
    with Image.open(io.BytesIO(png.encode(pixels, {}))) as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), pixels)


@settings(max_examples=30, deadline=None)
@given(PIXELS)
def test_each_row_has_the_filter_of_the_least_differences(pixels: Pixels) -> None:
    height, width, _ = pixels.shape
    data = zlib.decompress(chunks(png.encode(pixels, {}))[b"IDAT"])
    rows = np.frombuffer(data, dtype=np.uint8).reshape(height, 1 + 3 * width)
    values = pixels.reshape(height, 3 * width).astype(int)
    for y in range(height):
        candidates = []
        for kind in range(5):
            row = []
            for x in range(3 * width):
                left = values[y, x - 3] if x >= 3 else 0
                up = values[y - 1, x] if y else 0
                corner = values[y - 1, x - 3] if x >= 3 and y else 0
                paeth = min((left, up, corner), key=lambda v: abs(left + up - corner - v))
                row.append((values[y, x] - (0, left, up, (left + up) // 2, paeth)[kind]) % 256)
            candidates.append(row)
        costs = [sum(min(value, 256 - value) for value in row) for row in candidates]
        best = int(np.argmin(costs))
        assert rows[y, 0] == best
        assert rows[y, 1:].tolist() == candidates[best]


def test_a_view_gives_the_bytes_of_its_copy() -> None:
    large = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    view = large[::2, 5:40]
    assert png.encode(view, {}) == png.encode(np.ascontiguousarray(view), {})


@pytest.mark.parametrize(
    ("text", "kind", "content"),
    [
        ("a rose\nseed: 7", b"tEXt", b"a rose\nseed: 7"),
        ("caf\u00e9", b"tEXt", b"caf\xe9"),
        ("\u201cdark\u201d", b"iTXt", "\0\0\0\0\u201cdark\u201d".encode()),
    ],
)
def test_text_is_latin1_where_it_can_be(text: str, kind: bytes, content: bytes) -> None:
    data = png.encode(np.zeros((1, 1, 3), dtype=np.uint8), {"parameters": text})
    assert chunks(data)[kind] == b"parameters\0" + content
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["parameters"] == text


def test_smooth_images_are_not_larger_than_pillows() -> None:
    y, x = np.mgrid[0:128, 0:128]
    pixels = np.stack([x + y, x * y // 128, 255 - y], axis=-1).astype(np.uint8)
    pillow = io.BytesIO()
    Image.fromarray(pixels).save(pillow, "PNG")
    assert len(png.encode(pixels, {})) <= 1.1 * len(pillow.getvalue())
