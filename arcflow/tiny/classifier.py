"""The small classifier that judges images: class accuracy, and the features of the Frechet distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcflow.recipe import LoopConfig
from arcflow.training.loop import Iteration

SIDE = 32
"""Images of any size are seen at 32x32."""


class Labelled(Protocol):
    """Images with classes to train on."""

    def labelled(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """So many images, float32 [count, 3, height, width] in [-1, 1], and their classes [count]."""


class Classifier(nn.Module):
    """Three convolution stages and two linears, on RGB images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.features = nn.Linear(64 * 4 * 4, 64)
        self.classes = nn.Linear(64, classes)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Self:
        """The classifier that has these weights."""
        model = cls(len(weights["classes.bias"]))
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        return model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, 3, H, W] in [-1, 1] -> (logits [B, classes], features [B, 64])."""
        features = self.features(self.stages(F.adaptive_avg_pool2d(images, SIDE)).flatten(1))
        return self.classes(F.relu(features)), features


def classifier_step(images: Labelled, config: LoopConfig) -> Any:
    """Cross entropy on images with a little noise, so that features do not hang on single pixels."""

    def step(module: nn.Module, it: Iteration) -> dict[str, float]:
        rgb, labels = images.labelled(config.batch, it.generator)
        logits, _ = module(rgb + 0.05 * torch.randn(rgb.shape, generator=it.generator))
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return {"loss": float(loss.detach()), "accuracy": float(accuracy)}

    return step
