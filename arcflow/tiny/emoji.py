"""Fluent Emoji, Microsoft's rendered emoji (MIT licence), as images with captions.

The images are those of npm's ``@lobehub/fluent-emoji-3d``: 256x256 with transparency, put on white and made 64x64.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from arcflow.errors import DatasetError
from arcflow.tiny.captions import Subject, captions_of, subjects

SIZE = 64
"""The side of an image in pixels; what is drawn on a larger canvas keeps it."""
SEARCH_PATHS = (Path(".data/fluent-emoji"),)
COMMON = 0.4
SCALES, MOST_MOVED, MIRRORED = (0.86, 1.0), 3.0, 0.3
"""How images vary in training: their size, by how many pixels they are moved, and the share that is mirrored."""
_SIDED = re.compile(r"left|right|clock|thumb")


@dataclass(frozen=True)
class Emoji:
    """The images with what they show, in one fixed order.

    pixels: [N, 3, 64, 64] uint8, on white. subjects: what each of them shows.
    """

    pixels: Tensor
    subjects: tuple[Subject, ...]

    def __len__(self) -> int:
        return len(self.subjects)

    @cached_property
    def labels(self) -> Tensor:
        """[N] int64: the concept of each by its place among all, whatever the gender and the skin tone."""
        rows = {concept: row for row, concept in enumerate(concepts())}
        return torch.tensor([rows[subject.concept] for subject in self.subjects])

    @cached_property
    def weights(self) -> Tensor:
        """[N] float32: how often each is drawn: a concept of n images n ** COMMON times as often as one of one."""
        counts = torch.bincount(self.labels)[self.labels]
        return counts.float().pow(COMMON - 1.0)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows [count] of images, by their weights."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)

    def batch(self, count: int, generator: torch.Generator) -> Tensor:
        """So many images to train on, varied, float32 [count, 3, 64, 64]."""
        return self.labelled(count, generator)[0]

    def labelled(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """So many images to train on, varied, with their labels."""
        index = torch.randint(len(self), (count,), generator=generator)
        return self.varied(index, generator), self.labels[index]

    def rgb(self, index: Tensor, size: tuple[int, int] = (SIZE, SIZE)) -> Tensor:
        """The images at ``index`` [B] as float32 [B, 3, height, width] in [-1, 1], in the middle of a white canvas.

        size: (width, height), 64 pixels or more each.
        """
        images = self.pixels[index].float() / 127.5 - 1.0
        left, top = (size[0] - SIZE) // 2, (size[1] - SIZE) // 2
        margins = (left, size[0] - SIZE - left, top, size[1] - SIZE - top)
        return F.pad(images, margins, value=1.0) if any(margins) else images

    def varied(self, index: Tensor, generator: torch.Generator, size: tuple[int, int] = (SIZE, SIZE)) -> Tensor:
        """As :meth:`rgb`, each a little smaller, moved by some pixels and perhaps mirrored."""
        count = len(index)
        scale = torch.empty(count).uniform_(*SCALES, generator=generator)
        move = torch.empty(count, 2).uniform_(-MOST_MOVED, MOST_MOVED, generator=generator)
        mirrored = (torch.rand(count, generator=generator) < MIRRORED) & self.mirrors[index]
        sides = torch.tensor(size, dtype=torch.float32)
        turn = torch.zeros(count, 2, 3)
        turn[:, 0, 0] = torch.where(mirrored, -1.0, 1.0) / scale * sides[0] / SIZE
        turn[:, 1, 1] = 1.0 / scale * sides[1] / SIZE
        turn[:, :, 2] = -2.0 * move / SIZE
        grid = F.affine_grid(turn, [count, 3, size[1], size[0]], align_corners=False)
        # What lies outside is white: zero once white is taken off.
        return F.grid_sample(self.rgb(index) - 1.0, grid, mode="bicubic", align_corners=False).clamp(-2.0, 0.0) + 1.0

    @cached_property
    def mirrors(self) -> Tensor:
        """[N] bool: whether an image may be mirrored: not one that points left or right."""
        return torch.tensor([_SIDED.search(subject.concept) is None for subject in self.subjects])

    def without_held_out(self) -> Emoji:
        """Those that training may see: no held-out combination of activity, gender and skin tone."""
        kept = [row for row, subject in enumerate(self.subjects) if not subject.held_out]
        return Emoji(self.pixels[kept], tuple(self.subjects[row] for row in kept))

    def captions(self) -> list[tuple[str, ...]]:
        """All captions that each image can have."""
        return [captions_of(subject) for subject in self.subjects]


def concepts() -> list[str]:
    """All that is drawn, sorted."""
    return sorted({subject.concept for subject in subjects().values()})


def load_emoji(folder: Path | None = None) -> Emoji:
    """Read all images. Raises DatasetError where they are not to be found or cannot be read."""
    root = folder or next((path for path in SEARCH_PATHS if path.is_dir()), SEARCH_PATHS[0])
    known = subjects()
    files = {path.stem.replace("-fe0f", ""): path for path in root.glob("*.webp")}
    missing = sorted(known.keys() - files.keys())
    if missing:
        raise DatasetError(f"of Fluent Emoji {len(missing)} images are missing in {root}: run `make data RECIPE=emoji`")
    paths = sorted(files[code] for code in known)
    shown = {files[code]: subject for code, subject in known.items()}
    try:
        pixels = np.stack([_on_white(path) for path in paths])
    except (OSError, ValueError) as error:
        raise DatasetError(f"{root} is damaged ({error}): remove it and run `make data RECIPE=emoji` again") from error
    return Emoji(torch.from_numpy(pixels), tuple(shown[path] for path in paths))


def _on_white(path: Path) -> np.ndarray:
    """One image on white, [3, 64, 64] uint8."""
    with Image.open(path) as opened:
        rgba = opened.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    small = Image.alpha_composite(white, rgba).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(small).transpose(2, 0, 1)
