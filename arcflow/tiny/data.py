"""Fashion-MNIST as colour product photographs with captions.

The images come from Debian's package ``dataset-fashion-mnist`` (MIT licence): 60,000 training and
10,000 test photographs, 28x28 grey, white garments on black. They are inverted (white background) and padded
to 32x32, which is what makes them look like product photographs.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from arcflow.errors import DatasetError

CLASSES: tuple[tuple[str, ...], ...] = (
    ("t-shirt", "tee"),
    ("trousers", "pair of pants"),
    ("pullover", "sweater"),
    ("dress", "gown"),
    ("coat", "jacket"),
    ("sandal", "open shoe"),
    ("shirt", "button shirt"),
    ("sneaker", "running shoe"),
    ("bag", "handbag"),
    ("ankle boot", "boot"),
)
"""For each label 0..9, the words for it; the first one is the canonical name."""

TONES: tuple[str, ...] = ("dark", "grey", "light")
"""Tone of the garment, measured from the pixels: index 0, 1, 2."""

HELD_OUT: frozenset[tuple[int, int]] = frozenset({(0, 3), (2, 9), (0, 5)})
"""(tone, label) pairs never named together in a training caption: a dark dress, a light ankle boot, a dark sandal.

An image of such a pair is captioned without its tone, so that a prompt with the pair tests composition.
"""

TEMPLATES: tuple[str, ...] = (
    "{a} {x}",
    "a photo of {a} {x}",
    "photo of {a} {x}",
    "one {x}",
    "a picture of {a} {x}",
)
"""Caption forms: {x} is the garment with or without its tone, {a} its article."""

SEARCH_PATHS = (
    Path(".data/usr/share/datasets/fashion-mnist"),
    Path("/usr/share/datasets/fashion-mnist"),
)
SIZE = 32
_MAGIC_IMAGES, _MAGIC_LABELS = 2051, 2049


@dataclass(frozen=True)
class Images:
    """A split of the data set.

    images: [N, 1, 32, 32] uint8, 255 = white background. labels: [N] int64 in 0..9. tones: [N] int64 in 0..2.
    """

    images: torch.Tensor
    labels: torch.Tensor
    tones: torch.Tensor

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def rgb(self, index: torch.Tensor) -> torch.Tensor:
        """The images at ``index`` [B] as float32 [B, 3, 32, 32] in [-1, 1]."""
        grey = self.images[index].float() / 127.5 - 1.0
        return grey.expand(-1, 3, -1, -1)

    def batch(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """So many images to train on, float32 [count, 3, 32, 32]."""
        return self.labelled(count, generator)[0]

    def labelled(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """So many images to train on, with their labels."""
        index = torch.randint(len(self), (count,), generator=generator)
        return self.rgb(index), self.labels[index]


def load_images(split: str = "train", folder: Path | None = None) -> Images:
    """Read one split ("train": 60,000 or "test": 10,000). Raises DatasetError when it is not to be found or damaged.

    Tones are the terciles of the mean of the foreground pixels (those darker than the background), with the
    cut points of the training split.
    """
    prefix = {"train": "train", "test": "t10k"}.get(split)
    if prefix is None:
        raise DatasetError(f"unknown split {split!r}: choose train or test")
    root = folder or next((p for p in SEARCH_PATHS if p.is_dir()), None)
    if root is None or not (root / f"{prefix}-images-idx3-ubyte.gz").is_file():
        raise DatasetError(
            f"Fashion-MNIST was not found in {root or ' or '.join(map(str, SEARCH_PATHS))}: "
            "run `make data`, or install Debian's package dataset-fashion-mnist"
        )
    raw = _read_idx(root / f"{prefix}-images-idx3-ubyte.gz", _MAGIC_IMAGES)
    labels = _read_idx(root / f"{prefix}-labels-idx1-ubyte.gz", _MAGIC_LABELS)
    if raw.shape[0] != labels.shape[0]:
        raise DatasetError(f"{root}: {raw.shape[0]} images but {labels.shape[0]} labels; install the package again")
    pad = (SIZE - raw.shape[1]) // 2
    images = 255 - np.pad(raw, ((0, 0), (pad, pad), (pad, pad)))
    return Images(
        images=torch.from_numpy(images[:, None]),
        labels=torch.from_numpy(labels.astype(np.int64)),
        tones=torch.from_numpy(_tones(raw)),
    )


def caption(label: int, tone: int | None, rng: np.random.Generator) -> str:
    """One caption for an image: a template, a synonym, and in three of four the tone (never a held-out pair)."""
    noun = CLASSES[label][int(rng.integers(len(CLASSES[label])))]
    with_tone = tone is not None and (tone, label) not in HELD_OUT and rng.random() < 0.75
    phrase = f"{TONES[tone]} {noun}" if with_tone and tone is not None else noun
    return _fill(TEMPLATES[int(rng.integers(len(TEMPLATES)))], phrase)


def all_captions(*, held_out: bool = True) -> list[str]:
    """Every caption that an image can have, in a fixed order; with ``held_out``, those that none is given too."""
    phrases = []
    for label, words in enumerate(CLASSES):
        for noun in words:
            tones = [t for i, t in enumerate(TONES) if held_out or (i, label) not in HELD_OUT]
            phrases += [noun, *(f"{tone} {noun}" for tone in tones)]
    return [_fill(template, phrase) for phrase in phrases for template in TEMPLATES]


def evaluation_prompts(count: int) -> list[tuple[str, int, int]]:
    """``count`` prompts with their label and tone, cycling evenly over all tone x class pairs.

    Held-out twice: no training caption has this form ("picture of a dark bag"), and the held-out pairs are included.
    """
    pairs = [(tone, label) for label in range(len(CLASSES)) for tone in range(len(TONES))]
    chosen = (pairs[i % len(pairs)] for i in range(count))
    return [(_fill("picture of {a} {x}", f"{TONES[tone]} {CLASSES[label][0]}"), label, tone) for tone, label in chosen]


def _fill(template: str, phrase: str) -> str:
    return template.format(a="an" if phrase[0] in "aeiou" else "a", x=phrase)


def _read_idx(path: Path, magic: int) -> np.ndarray:
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DatasetError(f"cannot read {path}: {error}; install the package dataset-fashion-mnist again") from error
    rank = magic & 0xFF
    header = np.frombuffer(data, dtype=">i4", count=1 + rank) if len(data) >= 4 * (1 + rank) else np.zeros(1)
    if header[0] != magic or len(data) != 4 * (1 + rank) + int(np.prod(header[1:])):
        raise DatasetError(f"{path} is not a whole IDX file: install the package dataset-fashion-mnist again")
    return np.frombuffer(data, dtype=np.uint8, offset=4 * (1 + rank)).reshape(tuple(header[1:]))


_TONE_CUTS = (0.2908, 0.4535)
"""Terciles of the mean foreground brightness (0 black, 1 white) over the training split, see tests."""


def _tones(raw: np.ndarray) -> np.ndarray:
    garment = raw.astype(np.float32) / 255.0
    mask = garment > 0.05
    brightness = 1.0 - (garment * mask).sum(axis=(1, 2)) / np.maximum(mask.sum(axis=(1, 2)), 1)
    return np.asarray(np.digitize(brightness, _TONE_CUTS), dtype=np.int64)
