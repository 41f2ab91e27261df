"""Images as PNG files that say how they were made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from foundation.files import atomic_file
from runtime import png
from runtime.errors import RequestError
from runtime.png import Pixels

MAX_SCALE = 64
MAX_SIDE = 16_384
"""Pixels: the longest side of an image after enlarging."""


def enlarge(pixels: Pixels, scale: int) -> Pixels:
    """``pixels`` with every pixel repeated ``scale`` times both ways (nearest neighbour). Raises RequestError."""
    height, width, _ = pixels.shape
    check_scale(width, height, scale)
    return np.ascontiguousarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1))


def check_scale(width: int, height: int, scale: int) -> None:
    """Raise RequestError unless an image of that many pixels may be enlarged ``scale`` times."""
    if not 1 <= scale <= MAX_SCALE:
        raise RequestError(f"scale is {scale}; it must be from 1 to {MAX_SCALE}")
    side = max(width, height) * scale
    if side > MAX_SIDE:
        raise RequestError(f"scale {scale} makes a side of {side} px; at most {MAX_SIDE} are allowed")


def encode_png(pixels: Pixels, settings: Mapping[str, Any]) -> bytes:
    """The PNG of uint8 [H, W, 3] with ``settings`` in two text chunks: ``parameters`` to read, ``arcflow`` in JSON.

    The same image and settings give the same bytes, here and in C++ (with one release of zlib): see runtime/png.py.
    """
    return png.encode(
        pixels, {"parameters": describe(settings), "arcflow": json.dumps(settings, sort_keys=True, allow_nan=False)}
    )


def describe(settings: Mapping[str, Any]) -> str:
    """The settings for a person: the prompt, then one line of ``name: value``, with six digits of every float."""
    rest = ", ".join(f"{name}: {_short(value)}" for name, value in settings.items() if name != "prompt")
    return f"{_short(settings.get('prompt', ''))}\n{rest}"


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a PNG that :func:`encode_png` made. Raises RequestError where there are none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            settings = json.loads(image.info["arcflow"])
        if not isinstance(settings, dict):
            raise ValueError("settings are an object")
    except (OSError, KeyError, ValueError) as error:
        raise RequestError(f"{path} is not a PNG with ArcFlow's settings in it") from error
    return settings


def targets(out: Path, count: int, previews: int) -> Iterator[tuple[Path, int, int | None]]:
    """Where ``count`` images with ``previews`` frames each are written: (file, image, frame or None for the image).

    NAME.png, or NAME-00.png, NAME-01.png, ... for several; previews NAME-preview-00.png, ...
    """
    for index in range(count):
        name = out if count == 1 else out.with_stem(f"{out.stem}-{index:02d}")
        yield name, index, None
        for frame in range(previews):
            yield name.with_stem(f"{name.stem}-preview-{frame:02d}"), index, frame


def check_name(out: Path) -> None:
    """Raise RequestError unless ``out`` is the name of a PNG file."""
    if out.suffix.lower() != ".png":
        raise RequestError(f"cannot write {out}: only PNG files are written; give a name that ends in .png")


def check_targets(paths: list[Path], remedy: str = "choose another path") -> None:
    """Raise RequestError where a path cannot become a file, so that this is known before the work and not after.

    remedy: what the message tells the user to do.
    """
    for path in paths:
        try:
            if path.is_dir():
                raise RequestError(f"cannot write {path}: it is a folder; give the name of a file that ends in .png")
            folder = next(parent for parent in path.parents if parent.exists())
            if not folder.is_dir():
                raise RequestError(f"cannot write {path}: {folder} is not a folder; {remedy}")
        except OSError as error:
            raise RequestError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write all of ``contents``, or none of it: every file lies complete beside its place before the first rename.

    Raises ArcFlowError.
    """
    with ExitStack() as stack:
        for path, data in contents.items():
            stack.enter_context(atomic_file(path)).write_bytes(data)


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return " ".join(_short(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
