"""What a vision network sees in images: features, whose distance is nearer to a person's eye than that of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from arcflow.errors import FeaturesError
from arcflow.sources.hub import resolve_features
from arcflow.sources.pipeline import quiet


@dataclass(frozen=True)
class Features:
    """A vision transformer and what prepares images for it.

    name: as it was given; model: of transformers, frozen.
    """

    name: str
    model: Any
    processor: Any

    @torch.no_grad()
    def __call__(self, images: Sequence[Any]) -> Tensor:
        """The features of images (PIL), float32 [N, D] of length 1, on the CPU: the last state of the first token."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        states = self.model(pixel_values=pixels.to(self.model.device)).last_hidden_state
        return torch.nn.functional.normalize(states[:, 0].float(), dim=1).cpu()


def open_features(source: str, device: torch.device) -> Features:
    """A vision transformer in transformers' form, such as DINOv2: a folder or a hub id. In float32.

    Raises SourceError where there is none, FeaturesError where it is damaged or makes no features of images alone.
    """
    folder = resolve_features(source)
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise FeaturesError(
                f"{folder} lacks {name}; give --features a vision network such as facebook/dinov2-small"
            )
    try:
        with quiet():
            from transformers import AutoImageProcessor, AutoModel

            # Pillow resizes the same wherever it is installed; torchvision is not needed.
            processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
            model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise FeaturesError(f"cannot open {folder}: {error}; download it again, or give other --features") from error
    features = Features(source, model.to(device).requires_grad_(False).eval(), processor)
    _try(features, folder)
    return features


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos of the angle between features [N, D] of length 1, row by row, [N]: 0 for the same, at most 2."""
    return 1.0 - (a * b).sum(dim=1)


def _try(features: Features, folder: Path) -> None:
    """See that it makes features of an image, before anything long is begun."""
    from PIL import Image

    try:
        features([Image.new("RGB", (64, 64))])
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError) as error:
        raise FeaturesError(
            f"{folder} makes no features of images alone ({error}); give --features a vision transformer such as "
            "facebook/dinov2-small"
        ) from error
