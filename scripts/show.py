"""Print an image as text, two rows of pixels to a line: ``python scripts/show.py IMAGE.png``."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

WIDTH = 48
"""Columns of text; a character is about twice as high as wide, so there are half as many lines as columns."""

RAMP = "@%#*+=-:. "
"""From black to white, which on white background leaves the paper blank."""


def rendition(path: Path) -> str:
    """The image at ``path`` in lines of at most WIDTH characters."""
    with Image.open(path) as image:
        height = max(1, round(WIDTH * image.height / image.width / 2))
        grey = image.convert("L").resize((WIDTH, height), Image.Resampling.BOX)
    characters = [RAMP[value * len(RAMP) // 256] for value in grey.tobytes()]
    rows = ("".join(characters[start : start + WIDTH]) for start in range(0, len(characters), WIDTH))
    return "\n".join(row.rstrip() for row in rows)


if __name__ == "__main__":
    print(rendition(Path(sys.argv[1])))
