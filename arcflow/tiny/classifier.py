"""The small classifier that judges images: class accuracy, and the features of the Frechet distance."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcflow.recipe import LoopConfig
from arcflow.tiny.data import Images
from arcflow.training.loop import Iteration


class Classifier(nn.Module):
    """Three convolution stages and two linears; works on the grey mean of RGB images."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.features = nn.Linear(64 * 4 * 4, 64)
        self.classes = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, 3, 32, 32] in [-1, 1] -> (logits [B, 10], features [B, 64])."""
        grey = images.mean(dim=1, keepdim=True)
        features = self.features(self.stages(grey).flatten(1))
        return self.classes(F.relu(features)), features


def classifier_step(images: Images, config: LoopConfig) -> Any:
    """Cross entropy on images with a little noise, so that features do not hang on single pixels."""

    def step(module: nn.Module, it: Iteration) -> dict[str, float]:
        index = torch.randint(len(images), (config.batch,), generator=it.generator)
        rgb = images.rgb(index)
        logits, _ = module(rgb + 0.05 * torch.randn(rgb.shape, generator=it.generator))
        labels = images.labels[index]
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return {"loss": float(loss.detach()), "accuracy": float(accuracy)}

    return step
