"""PNG files that say how they were made, written all or none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foundation.errors import ArcFlowError
from runtime.errors import RequestError
from runtime.image import check_targets, encode_png, enlarge, read_settings, write_files

SETTINGS = {"prompt": "a \u201cred\u201d apple", "seed": 2**64 - 1, "sigmas": [1.0, 0.25, 0.0], "model": "tiny"}


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


def test_pixels_and_settings_come_back(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(pixels, SETTINGS))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
        assert image.info["parameters"].splitlines() == [
            SETTINGS["prompt"],
            "seed: 18446744073709551615, sigmas: 1 0.25 0, model: tiny",
        ]
        assert json.loads(image.info["arcflow"]) == SETTINGS
    assert read_settings(tmp_path / "a.png") == SETTINGS


def test_the_same_image_gives_the_same_bytes(pixels: NDArray[np.uint8]) -> None:
    assert encode_png(pixels, SETTINGS) == encode_png(pixels.copy(), dict(SETTINGS))


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_settings_of_what_is_not_ours(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.png"
    if content is None:
        Image.new("RGB", (2, 2)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(RequestError, match="is not a PNG with ArcFlow's settings"):
        read_settings(path)


def test_enlarging_repeats_pixels(pixels: NDArray[np.uint8]) -> None:
    large = enlarge(pixels, 3)
    assert large.shape == (18, 12, 3)
    for y in range(3):
        for x in range(3):
            np.testing.assert_array_equal(large[y::3, x::3], pixels)
    np.testing.assert_array_equal(enlarge(pixels, 1), pixels)


@pytest.mark.parametrize("scale", [0, -1, 65, 10**9])
def test_scales_out_of_range(pixels: NDArray[np.uint8], scale: int) -> None:
    with pytest.raises(RequestError, match="must be from 1 to 64"):
        enlarge(pixels, scale)


def test_an_image_too_large_to_enlarge() -> None:
    with pytest.raises(RequestError, match="scale 20 makes a side of 20000 px"):
        enlarge(np.zeros((1000, 8, 3), dtype=np.uint8), 20)


def test_targets_that_cannot_be_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    check_targets([tmp_path / "a.png", tmp_path / "not" / "yet" / "a.png", tmp_path / "file"])
    with pytest.raises(RequestError, match="it is a folder"):
        check_targets([tmp_path])
    with pytest.raises(RequestError, match="is not a folder"):
        check_targets([tmp_path / "file" / "a.png"])


def test_files_are_written_all_or_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArcFlowError, match="cannot write"):
        write_files({tmp_path / "a.png": b"1", tmp_path / "file" / "b.png": b"2"})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    write_files({tmp_path / "a.png": b"1", tmp_path / "b.png": b"2"})
    assert (tmp_path / "a.png").read_bytes() + (tmp_path / "b.png").read_bytes() == b"12"
