"""FLUX for the exporter: which networks, from which folders, with which tokenizers and latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.schema import Latent, Limits, Range
from export.sources.configs import read_json, read_vae_config, vae_factor
from export.sources.tokenizers import TokenizerFile, tokenizer_file
from export.tensorrt.profiles import choose_shapes, dimension_ranges

if TYPE_CHECKING:
    from export.networks.base import Network
    from export.weights.lora import StyleLora
    from export.weights.merge import MergedStudent

NAME = "flux"
NETWORKS = ("clip", "t5", "backbone", "vae_decoder")
"""In the order in which an image needs them."""

FOLDERS: Mapping[str, str] = {
    "clip": "text_encoder",
    "t5": "text_encoder_2",
    "backbone": "transformer",
    "vae_decoder": "vae",
}
"""Subfolder of the base pipeline by network."""

_PATCH = 2
"""Latent cells along each side of a token."""


def network(name: str, base: Path, student: MergedStudent, adapter: Path, loras: Sequence[StyleLora] = ()) -> Network:
    """One of ``NETWORKS`` from the pipeline folder ``base`` and a student of its transformer.

    adapter, loras: what the student was merged from, which its reference in torch is made of anew.
    Raises ExportError, WeightsError.
    """
    from export.networks.backbone import backbone_network
    from export.networks.clip import clip_network
    from export.networks.style_loras import with_style_loras
    from export.networks.t5 import t5_network
    from export.networks.vae_decoder import vae_decoder_network

    folder = base / FOLDERS[name]
    match name:
        case "clip":
            return clip_network(folder)
        case "t5":
            return t5_network(folder)
        case "backbone":
            return with_style_loras(backbone_network(student, folder, adapter), loras)
        case _:
            return vae_decoder_network(folder)


def tokenizers(base: Path, limits: Limits) -> dict[str, TokenizerFile]:
    """The tokenizers of both text encoders, which take prompts of full length. Raises ExportError, WeightsError."""
    clip = read_json(base / FOLDERS["clip"] / "config.json")
    lengths = {
        "clip": ("tokenizer", int(clip.get("max_position_embeddings", 0))),
        "t5": ("tokenizer_2", limits.text_tokens.max),
    }
    return {name: tokenizer_file(name, base / folder, length) for name, (folder, length) in lengths.items()}


def latent(base: Path) -> Latent:
    """Geometry of the latent and its normalisation. Raises ExportError, WeightsError."""
    config = read_vae_config(base / FOLDERS["vae_decoder"])
    return Latent(
        channels=config["latent_channels"],
        patch=_PATCH,
        vae_factor=vae_factor(config),
        scaling_factor=[config["scaling_factor"]],
        shift_factor=[config.get("shift_factor") or 0.0],
    )


def dimensions(limits: Limits, latent: Latent) -> dict[str, Range]:
    """Ranges of ``batch image_tokens text_tokens rows columns``."""
    return dimension_ranges(choose_shapes(limits), latent)
