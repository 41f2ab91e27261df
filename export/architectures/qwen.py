"""Qwen-Image for the exporter: which networks, from which folders, with which tokenizer and latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.schema import Latent, Limits, Range
from export.errors import ExportError
from export.networks.qwen_config import qwen_vae_factor, read_qwen_vae_config
from export.sources.tokenizers import TokenizerFile, tokenizer_file
from export.tensorrt.profiles import choose_shapes, dimension_ranges

if TYPE_CHECKING:
    from export.networks.base import Network
    from export.weights.lora import StyleLora
    from export.weights.merge import MergedStudent

NAME = "qwen"
NETWORKS = ("text", "backbone", "vae_decoder")
"""In the order in which an image needs them."""

FOLDERS: Mapping[str, str] = {"text": "text_encoder", "backbone": "transformer", "vae_decoder": "vae"}
"""Subfolder of the base pipeline by network."""

TEMPLATE = (
    "<|im_start|>system\n"
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""What the pipeline puts a prompt into."""

DROP = 34
"""Tokens of the template before the prompt; the backbone does not get their encodings."""

TEXT_TOKENS_MAX = 1024
"""The most tokens that the pipeline gives the backbone: the prompt and the template's end."""

_PATCH = 2
"""Latent cells along each side of a token."""


def network(name: str, base: Path, student: MergedStudent, adapter: Path, loras: Sequence[StyleLora] = ()) -> Network:
    """One of ``NETWORKS`` from the pipeline folder ``base`` and a student of its transformer.

    adapter, loras: what the student was merged from, which its reference in torch is made of anew.
    Raises ExportError, WeightsError.
    """
    from export.networks.qwen_backbone import qwen_backbone_network
    from export.networks.qwen_text import qwen_text_network
    from export.networks.qwen_vae_decoder import qwen_vae_decoder_network
    from export.networks.style_loras import with_style_loras

    folder = base / FOLDERS[name]
    match name:
        case "text":
            return qwen_text_network(folder)
        case "backbone":
            return with_style_loras(qwen_backbone_network(student, folder, adapter), loras)
        case _:
            return qwen_vae_decoder_network(folder)


def tokenizers(base: Path, limits: Limits) -> dict[str, TokenizerFile]:
    """The tokenizer of the text encoder, with the template. Raises ExportError, WeightsError.

    A call's prompts are padded to the longest of them, on the right: tokens see those before them only, so padding
    changes no other token's encoding, and cutting the ids is cutting the encodings.
    """
    most = limits.text_tokens.max
    if most > TEXT_TOKENS_MAX:
        raise ExportError(f"Qwen-Image takes at most {TEXT_TOKENS_MAX} text tokens; {most} were asked for")
    file = tokenizer_file("text", base / "tokenizer", DROP + most, TEMPLATE, DROP, "longest")
    return {"text": file}


def latent(base: Path) -> Latent:
    """Geometry of the latent and its normalisation a channel. Raises ExportError, WeightsError.

    The pipeline decodes ``z * latents_std + latents_mean``; Latent says ``z / scaling_factor + shift_factor``.
    """
    config = read_qwen_vae_config(base / FOLDERS["vae_decoder"])
    return Latent(
        channels=int(config["z_dim"]),
        patch=_PATCH,
        vae_factor=qwen_vae_factor(config),
        scaling_factor=[1.0 / float(std) for std in config["latents_std"]],
        shift_factor=[float(mean) for mean in config["latents_mean"]],
    )


def dimensions(limits: Limits, latent: Latent) -> dict[str, Range]:
    """Ranges of ``batch image_tokens text_tokens rows columns``. The network ``text`` takes ``DROP`` tokens more."""
    return dimension_ranges(choose_shapes(limits), latent)
