"""The PNG files of the C++ core are those of the Python runtime, byte for byte."""

from __future__ import annotations

import io
import json
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.image import encode_png

Case = tuple[NDArray[np.uint8], dict[str, Any]]

TEXTS = [
    "",
    "a smiling face with sunglasses",
    "caf\u00e9 \u00ff\u0080",
    "\u201cred\u201d",
    "\U0001f600 \u0416",
    'a "\\/\b\f\n\r\t\x7f',
    "\u0100",
]


def native(program: Path, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """What the probe answers to each image with its settings."""
    lines = [
        json.dumps(
            {
                "rgb8": picture.tobytes().hex(),
                "width": picture.shape[1],
                "height": picture.shape[0],
                "settings": json.dumps(settings),
            }
        )
        for picture, settings in cases
    ]
    done = subprocess.run([program], input="\n".join(lines) + "\n", capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_equal(program: Path, cases: Sequence[Case]) -> None:
    """Hold the probe's files to ours; where the two zlibs differ, to our pixels and settings."""
    answers = native(program, cases)
    assert len(answers) == len(cases)
    for answer, (picture, settings) in zip(answers, cases, strict=True):
        data = bytes.fromhex(answer["png"])
        ours = encode_png(picture, settings)
        if answer["zlib"] == zlib.ZLIB_RUNTIME_VERSION:
            assert data == ours
        with Image.open(io.BytesIO(data)) as image, Image.open(io.BytesIO(ours)) as expected:
            np.testing.assert_array_equal(np.asarray(image), picture)
            assert image.info == expected.info


def test_pictures_of_many_kinds(native_build: Path) -> None:
    generator = np.random.default_rng(3)
    cases: list[Case] = []
    for height, width in [(1, 1), (1, 7), (9, 1), (32, 32), (33, 31), (64, 48), (200, 300)]:
        noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        y, x = np.mgrid[0:height, 0:width]
        smooth = np.stack([x + y, x * y // 8, 255 - y * 3], axis=-1).astype(np.uint8)
        cases += [(noise, {}), (smooth, {}), (smooth // 64 * 64, {}), (smooth + noise // 32, {})]
    check_equal(native_build / "probe_png", cases)


def test_a_large_picture(native_build: Path) -> None:
    generator = np.random.default_rng(4)
    walk = generator.integers(-3, 4, (1024, 1024, 3)).cumsum(axis=0).cumsum(axis=1) // 40
    check_equal(native_build / "probe_png", [(walk.astype(np.uint8), {"prompt": "a walk"})])


def test_settings_of_many_kinds(native_build: Path) -> None:
    generator = np.random.default_rng(5)
    picture = np.zeros((1, 1, 3), dtype=np.uint8)
    cases: list[Case] = [(picture, {"prompt": text, "z": text, "\u00e9": [text, 1]}) for text in TEXTS]
    cases += [(picture, {"seed": seed, "zero": -0.0}) for seed in (0, -1, 2**63, 2**64 - 1, -(2**63))]
    cases.append((picture, {"b": None, "a": [True, False], "c": {"y": 1, "x": [1.5, {}]}, "d": [], "e": [[], [2]]}))
    bits = generator.integers(0, 2**63, 3000, dtype=np.uint64).view(np.float64)
    powers = [
        sign * 10.0**exponent * digit for exponent in range(-20, 25) for digit in (1, 1.5, 9.999999) for sign in (1, -1)
    ]
    floats = [float(value) for value in bits if np.isfinite(value)] + powers
    floats += generator.standard_normal(1000).tolist() + generator.standard_normal(1000).astype(np.float32).tolist()
    cases.append((picture, {"sigmas": floats}))
    check_equal(native_build / "probe_png", cases)


@pytest.mark.parametrize(
    ("settings", "part"),
    [("[1]", "it is of the type array"), ("{", "syntax error"), ('{"a": 36893488147419103232}', "more than 64 bits")],
)
def test_settings_that_are_no_object(native_build: Path, settings: str, part: str) -> None:
    request = json.dumps({"rgb8": "000000", "width": 1, "height": 1, "settings": settings})
    done = subprocess.run(
        [native_build / "probe_png"], input=request + "\n", capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    assert answer["code"] == 1
    assert part in answer["error"]
