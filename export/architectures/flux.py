"""FLUX for the exporter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.schema import Latent, Limits
from export.architectures.base import Architecture, Part, Tensors
from export.sources.configs import read_json, read_vae_config
from export.sources.tokenizers import TokenizerFile, token_ids, tokenizer_file

if TYPE_CHECKING:
    from torch import Tensor

    from arcflow.architectures.conditioning import ConditioningDtype

_PATCH = 2
"""Latent cells along each side of a token."""


def _tokenizers(base: Path, limits: Limits) -> dict[str, TokenizerFile]:
    """Those of both text encoders, which take prompts of full length."""
    clip = read_json(base / PARTS["clip"].folder / "config.json")
    lengths = {
        "clip": ("tokenizer", int(clip.get("max_position_embeddings", 0))),
        "t5": ("tokenizer_2", limits.text_tokens.max),
    }
    return {name: tokenizer_file(name, base / folder, length) for name, (folder, length) in lengths.items()}


def _latent(base: Path) -> Latent:
    from arcflow.architectures.flux import vae_factor

    config = read_vae_config(base / PARTS["vae_decoder"].folder)
    return Latent(
        channels=config["latent_channels"],
        patch=_PATCH,
        vae_factor=vae_factor(config),
        scaling_factor=[config["scaling_factor"]],
        shift_factor=[config.get("shift_factor") or 0.0],
    )


def _encodings(
    tokenizers: Mapping[str, TokenizerFile], prompts: Sequence[str], encode: Callable[[str, Tensors], Tensor]
) -> dict[str, Tensor]:
    ports = {"clip": "pooled_projections", "t5": "encoder_hidden_states"}
    return {port: encode(name, {"input_ids": token_ids(tokenizers[name], prompts)[0]}) for name, port in ports.items()}


def _ports(
    encodings: Tensors, guidance: float, trained: ConditioningDtype, rows: int, columns: int
) -> dict[str, Tensor]:
    import torch

    from arcflow.architectures.flux import as_trained, image_ids

    batch, tokens = encodings["encoder_hidden_states"].shape[:2]
    return {
        **encodings,
        "guidance": as_trained(torch.full((batch,), guidance), trained),
        "img_ids": image_ids(rows, columns),
        "txt_ids": torch.zeros(tokens, 3),
    }


PARTS: Mapping[str, Part] = {
    "clip": Part("text_encoder", "export.networks.clip"),
    "t5": Part("text_encoder_2", "export.networks.t5"),
    "conditioner": Part("transformer", "export.networks.flux_conditioner", merged=True),
    "backbone": Part("transformer", "export.networks.flux_backbone", merged=True),
    "vae_decoder": Part("vae", "export.networks.vae_decoder"),
}
_STUDENT = Part("transformer", "export.networks.flux_student", merged=True)
FLUX = Architecture("flux", PARTS, _STUDENT, 64, _tokenizers, _latent, _encodings, _ports)
