"""A vision network that compares images: the same, another size of the same, others; and folders that hold none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arcflow.errors import FeaturesError, SourceError
from arcflow.evaluation.features import cosine_distance, open_features

CPU = torch.device("cpu")


def picture(seed: int, side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_distances_of_images(vision: Path) -> None:
    features = open_features(str(vision), CPU)
    a = picture(0)
    found = features([a, a, picture(1), a.resize((128, 128), Image.Resampling.BICUBIC)])
    assert found.shape == (4, 32) and found.dtype == torch.float32
    assert found.norm(dim=1).tolist() == pytest.approx([1.0] * 4)
    same, other, larger = cosine_distance(found[[0, 0, 0]], found[1:]).tolist()
    assert abs(same) < 1e-6 < other and larger < other


def test_they_are_the_network_s_own_first_token(vision: Path) -> None:
    from transformers import AutoImageProcessor, Dinov2Model

    image = picture(2)
    pixels = AutoImageProcessor.from_pretrained(vision)(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        token = Dinov2Model.from_pretrained(vision)(pixel_values=pixels).last_hidden_state[0, 0]
    torch.testing.assert_close(open_features(str(vision), CPU)([image])[0], token / token.norm())


def test_what_is_no_vision_network_is_refused(vision: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no vision network at"):
        open_features(str(tmp_path / "none"), CPU)
    with pytest.raises(FeaturesError, match=r"lacks config\.json"):
        open_features(str(tmp_path), CPU)
    damaged = Path(shutil.copytree(vision, tmp_path / "damaged"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(FeaturesError, match="cannot open"):
        open_features(str(damaged), CPU)


def test_a_network_that_needs_text_too_is_refused(vision: Path, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 20}, vision_config={**small, "image_size": 28, "patch_size": 14}
    )
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    shutil.copy(vision / "preprocessor_config.json", tmp_path / "clip")
    with pytest.raises(FeaturesError, match="makes no features of images alone"):
        open_features(str(tmp_path / "clip"), CPU)
