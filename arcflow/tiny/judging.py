"""Who judges the images of an embedded model: held-out prompts, its classifier, and real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from arcflow.errors import CheckpointError
from arcflow.recipe import Recipe, own_teacher
from arcflow.tiny.captions import evaluation_prompts
from arcflow.tiny.classifier import Classifier
from arcflow.tiny.images import concepts, load_emoji

Classify = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [B, 3, H, W] in [-1, 1] -> logits [B, classes] and features [B, D]."""

_AT_ONCE = 500


@dataclass(frozen=True)
class Judge:
    """prompts: held-out ones, one a noise; labels [N]: the class of each; reals [M, D]: features of real images."""

    prompts: tuple[str, ...]
    labels: Tensor
    classify: Classify
    reals: Tensor

    @property
    def groups(self) -> Tensor:
        """[N] int64: the same number for the same prompt."""
        first = {prompt: row for row, prompt in reversed(list(enumerate(self.prompts)))}
        return torch.tensor([first[prompt] for prompt in self.prompts])


def open_judge(recipe: Recipe, count: int, classifier: Path, folder: Path | None = None) -> Judge:
    """The judge of the recipe's own teacher, with so many prompts. folder: of the images (default: found by itself).

    Raises CheckpointError where there is no classifier, DatasetError where there are no real images.
    """
    if not classifier.is_file():
        raise CheckpointError(f"no classifier at {classifier}: run `python -m arcflow.teacher`, or give --classifier")
    model = Classifier.of(load_file(classifier)).eval().requires_grad_(False)
    own_teacher(recipe)
    rows = {concept: row for row, concept in enumerate(concepts())}
    asked = [(text, rows[subject.concept]) for text, subject in evaluation_prompts(count)]
    emoji = load_emoji(folder).without_held_out()
    batches = (emoji.rgb(index) for index in torch.arange(len(emoji)).split(_AT_ONCE))
    reals = torch.cat([model(batch)[1] for batch in batches])
    return Judge(tuple(text for text, _ in asked), torch.tensor([label for _, label in asked]), model, reals)
