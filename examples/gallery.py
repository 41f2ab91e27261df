"""The gallery of the documentation: docs/gallery.md and its images, made anew from the list below.

python examples/gallery.py              writes into docs/
python examples/gallery.py out          writes into another folder
"""

from __future__ import annotations

import sys
from pathlib import Path

from runtime import Pipeline

DOCS = Path(__file__).resolve().parents[1] / "docs"
SCALE = 2
COLUMNS = 5
ENTRIES = [
    ("a smiling face with sunglasses", 5, 64),
    ("a red heart", 3, 64),
    ("a red apple", 1, 64),
    ("a rose", 2, 64),
    ("picture of a pizza", 0, 64),
    ("a person biking", 8, 96),
    ("a woman astronaut with medium-dark skin", 9, 64),
    ("a strawberry", 12, 64),
    ("a panda", 0, 64),
    ("a pineapple", 6, 64),
]
"""Prompt, seed and width in pixels; all are 64 high."""
WAY = ("a smiling face with sunglasses", 5, 4)
"""Prompt, seed and number of previews of the row that shows the way from noise to the image."""

PAGE = """# Gallery

The embedded model `tiny` made these images in two network evaluations on a CPU. It has 5.2 M parameters and was trained
on Microsoft's Fluent Emoji at 64x64. It has seen woman astronauts and medium-dark skin, but never the two together.
Prompts and seeds were chosen among what it draws well; of a rocket, for one, it makes little more than a streak. The
images are shown {scale} times larger. Each file says how it was made, in its text chunks. `python examples/gallery.py`
makes this page and its images anew; one of them alone is made by

```
python -m runtime.generate "{prompt}" --seed {seed} --scale {scale}
```

{table}

## From noise to the image

Previews show the state between noise and image. The closed form gives them; they cost no evaluation of the backbone:

```
python -m runtime.generate "{way_prompt}" --seed {way_seed} --previews {previews} --scale {scale}
```

{way}

FLUX.1-dev and Qwen-Image have not been run by this project yet (see [what has run on what](status.md)), so there are no
images of theirs here.
"""


def main(folder: str | Path = DOCS) -> None:
    out = Path(folder)
    images = out / "images" / "gallery"
    pipeline = Pipeline.open("tiny", threads=1)
    cells = []
    for prompt, seed, width in ENTRIES:
        result = pipeline.generate(prompt, seed=seed, width=width)
        (file,) = result.save(images / f"{_name(prompt)}-{seed}.png", scale=SCALE)
        cells.append((_image(file, out, prompt), f"{prompt}<br>seed {seed}, {width} x 64"))
    way_prompt, way_seed, previews = WAY
    result = pipeline.generate(way_prompt, seed=way_seed, previews=previews)
    last, *frames = result.save(images / "way.png", scale=SCALE)
    levels = [f"noise level {preview.sigma:.2f}" for preview in result.previews[0]]
    way = [(_image(file, out, text), text) for file, text in zip([*frames, last], [*levels, "image"], strict=True)]
    page = PAGE.format(
        scale=SCALE, prompt=ENTRIES[0][0], seed=ENTRIES[0][1], table=_table(cells),
        way_prompt=way_prompt, way_seed=way_seed, previews=previews, way=_table(way),
    )  # fmt: skip
    (out / "gallery.md").write_text(page, encoding="utf-8")
    print(out / "gallery.md")


def _name(prompt: str) -> str:
    return prompt.replace(" ", "-")


def _image(file: Path, root: Path, text: str) -> str:
    return f"![{text}]({file.relative_to(root).as_posix()})"


def _table(cells: list[tuple[str, str]]) -> str:
    """Rows of COLUMNS images, each with its text below."""
    lines = ["| " * COLUMNS + "|", "|---" * COLUMNS + "|"]
    for start in range(0, len(cells), COLUMNS):
        row = cells[start : start + COLUMNS]
        lines += [f"| {' | '.join(part)} |" for part in zip(*row, strict=True)]
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
