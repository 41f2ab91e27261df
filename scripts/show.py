"""Show an image in the terminal, and the way to it from noise: ``python -m scripts.show IMAGE.png --previews 6``.

The previews are those that ``python -m runtime.generate`` wrote beside the image. With the image they make a strip,
which is shown above it and written to IMAGE-strip.png. Half blocks show two pixels a character, in as many colours as
the terminal tells that it has; else a ramp of characters does. A library for images in terminals would be one more
package of the runtime's and do little more of this than Pillow, which resizes and has palettes.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from foundation.cli import ArgumentParser, run
from foundation.errors import ArcFlowError
from runtime.image import encode_png, read_settings, targets, write_files

SIDE = 64
"""Pixels: the longest side of what is shown of an image. A character is about twice as high as wide: two of them."""

LEAST = 8
"""Columns of a picture in the strip. Where there is no room for all in so many, some are left out in the terminal."""

RAMP = "@%#*+=-:. "
"""From black to white, which on white background leaves the paper blank."""

HALF = "▀"
"""Its upper half has the foreground's colour, its lower half the background's."""

_STEPS = (0, 95, 135, 175, 215, 255)
_XTERM = [(r, g, b) for r in _STEPS for g in _STEPS for b in _STEPS] + [(v, v, v) for v in range(8, 248, 10)]
_FIRST = 16
"""Number of the first colour of _XTERM; those before it are what the user's theme makes of them."""


class Colours(Enum):
    """What the pictures are made of."""

    NONE = "characters"
    XTERM = "256 colours"
    TRUE = "24 bits"


def colours_of(stream: TextIO, environment: Mapping[str, str]) -> Colours:
    """What ``stream`` can show: no colours where it is no terminal, or where NO_COLOR (no-color.org) is not empty."""
    terminal = environment.get("TERM", "")
    if environment.get("NO_COLOR") or terminal in ("", "dumb") or not stream.isatty():
        return Colours.NONE
    try:
        HALF.encode(stream.encoding)
    except UnicodeEncodeError:
        return Colours.NONE
    if environment.get("COLORTERM", "").lower() in ("truecolor", "24bit") or terminal.endswith("-direct"):
        return Colours.TRUE
    return Colours.XTERM if "256color" in terminal else Colours.NONE


def rendition(image: Image.Image, side: int, colours: Colours) -> list[str]:
    """The RGB image of any size as lines of equal width, at most ``side`` columns and half as many lines."""
    width, height = (size * side / max(image.size) for size in image.size)
    columns, lines = max(1, round(width)), max(1, round(height / 2))
    if colours is Colours.NONE:
        grey = np.asarray(image.convert("L").resize((columns, lines), Image.Resampling.BOX))
        return ["".join(RAMP[int(value) * len(RAMP) // 256] for value in row) for row in grey]
    codes = _codes(image.resize((columns, 2 * lines), Image.Resampling.BOX), colours)
    return [
        "".join(f"\x1b[38;{upper};48;{lower}m{HALF}" for upper, lower in zip(*pair, strict=True)) + "\x1b[0m"
        for pair in zip(codes[::2], codes[1::2], strict=True)
    ]


def strip_rendition(frames: Sequence[Image.Image], columns: int, colours: Colours) -> list[str]:
    """``frames``, all of one size, beside each other in at most ``columns``; the last is always among them."""
    count = max(1, min(len(frames), (columns + 1) // (LEAST + 1)))
    chosen = np.linspace(len(frames) - 1, 0, count).round().astype(int)[::-1]
    side = max(1, min(SIDE // 2, (columns + 1) // count - 1))
    pictures = [rendition(frames[index], side, colours) for index in chosen]
    return [" ".join(parts) for parts in zip(*pictures, strict=True)]


def write_strip(path: Path, files: Sequence[Path], frames: Sequence[Image.Image]) -> None:
    """Write ``frames``, which were read from ``files`` and are of one size, beside each other as a PNG.

    It has the last one's settings in it, and the noise levels of those before. Raises ArcFlowError.
    """
    gap = max(1, frames[0].width // 32)
    pixels = [np.pad(np.asarray(frame), ((0, 0), (gap, 0), (0, 0)), constant_values=255) for frame in frames]
    settings = {**read_settings(files[-1]), "previews": [read_settings(file).get("sigma") for file in files[:-1]]}
    write_files({path: encode_png(np.concatenate(pixels, axis=1)[:, gap:], settings)})


def main(argv: Sequence[str] | None = None) -> int:
    """Show and write; returns 0. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python -m scripts.show", description="Show an image in the terminal.")
    parser.add_argument("image", type=Path, metavar="IMAGE.png")
    parser.add_argument("--previews", type=int, default=0, metavar="N", help="of these frames beside it, a strip")
    arguments = parser.parse_args(argv)
    last, *first = (file for file, *_ in targets(arguments.image, 1, arguments.previews))
    files = [*first, last]
    frames = [_read(file) for file in files]
    colours, columns = colours_of(sys.stdout, os.environ), shutil.get_terminal_size().columns
    shown = rendition(frames[-1], min(SIDE, columns), colours)
    if first:
        if len({frame.size for frame in frames}) > 1:
            raise ArcFlowError(f"{last} and its previews differ in size; generate them together, with --previews")
        strip = last.with_stem(f"{last.stem}-strip")
        write_strip(strip, files, frames)
        shown = [*strip_rendition(frames, columns, colours), "", *shown, f"From noise to the image: {strip}"]
    print("\n".join(line.rstrip() for line in shown))
    return 0


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ArcFlowError(f"cannot read {path} as an image: {error.strerror or error}") from error


def _codes(image: Image.Image, colours: Colours) -> list[list[str]]:
    """For each pixel what follows 38; or 48; in the escape code of its colour."""
    if colours is Colours.TRUE:
        return [[f"2;{r};{g};{b}" for r, g, b in row] for row in np.asarray(image).tolist()]
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in _XTERM for value in colour])
    return [
        [f"5;{_FIRST + index}" for index in row]
        for row in np.asarray(image.quantize(palette=palette, dither=Image.Dither.NONE)).tolist()
    ]


if __name__ == "__main__":
    sys.exit(run(main))
