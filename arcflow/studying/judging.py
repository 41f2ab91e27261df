"""Who judges a study's images: held-out prompts of the embedded model, its classifier, and real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from arcflow.errors import CheckpointError

Classify = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [B, 3, H, W] in [-1, 1] -> logits [B, classes] and features [B, D]."""

REAL_IMAGES = 2000
"""Real images that features are compared with, at most."""


@dataclass(frozen=True)
class Judge:
    """prompts: held-out ones, one a noise; labels [N]: the class of each; reals [M, D]: features of real images."""

    prompts: tuple[str, ...]
    labels: Tensor
    classify: Classify
    reals: Tensor


def open_judge(count: int, classifier: Path, data: Path | None = None) -> Judge:
    """The embedded model's judge with so many prompts. data: folder of the data set (default: found by itself).

    Raises CheckpointError where there is no classifier, DatasetError where there are no real images.
    """
    from safetensors.torch import load_file

    from arcflow.tiny.classifier import Classifier
    from arcflow.tiny.data import evaluation_prompts, load_images

    if not classifier.is_file():
        raise CheckpointError(f"no classifier at {classifier}: run `python -m arcflow.teacher`, or give --classifier")
    model = Classifier()
    model.load_state_dict(load_file(classifier))
    model.eval().requires_grad_(False)
    images = load_images("test", data)
    prompts = evaluation_prompts(count)
    reals = model(images.rgb(torch.arange(min(REAL_IMAGES, len(images)))))[1]
    return Judge(tuple(text for text, *_ in prompts), torch.tensor([label for _, label, *_ in prompts]), model, reals)
