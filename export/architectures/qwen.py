"""Qwen-Image for the exporter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.schema import Latent, Limits
from export.architectures.base import Architecture, Part, Tensors
from export.errors import ExportError
from export.sources.configs import read_qwen_vae_config
from export.sources.tokenizers import TokenizerFile, token_ids, tokenizer_file

if TYPE_CHECKING:
    from torch import Tensor

    from arcflow.architectures.conditioning import ConditioningDtype

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


def _tokenizers(base: Path, limits: Limits) -> dict[str, TokenizerFile]:
    """That of the text encoder, with the template.

    A call's prompts are padded to the longest of them, on the right: tokens see those before them only, so padding
    changes no other token's encoding, and cutting the ids is cutting the encodings.
    """
    most = limits.text_tokens.max
    if most > TEXT_TOKENS_MAX:
        raise ExportError(f"Qwen-Image takes at most {TEXT_TOKENS_MAX} text tokens; {most} were asked for")
    return {"text": tokenizer_file("text", base / "tokenizer", DROP + most, TEMPLATE, DROP, "longest")}


def _latent(base: Path) -> Latent:
    from arcflow.architectures.qwen import vae_factor

    """The pipeline decodes ``z * latents_std + latents_mean``; Latent says ``z / scaling_factor + shift_factor``."""
    config = read_qwen_vae_config(base / PARTS["vae_decoder"].folder)
    return Latent(
        channels=int(config["z_dim"]),
        patch=_PATCH,
        vae_factor=vae_factor(config),
        scaling_factor=[1.0 / float(std) for std in config["latents_std"]],
        shift_factor=[float(mean) for mean in config["latents_mean"]],
    )


def _encodings(
    tokenizers: Mapping[str, TokenizerFile], prompts: Sequence[str], encode: Callable[[str, Tensors], Tensor]
) -> dict[str, Tensor]:
    ids, mask = token_ids(tokenizers["text"], prompts)
    sequence, mask = encode("text", {"input_ids": ids, "attention_mask": mask})[:, DROP:], mask[:, DROP:]
    return {
        "encoder_hidden_states": sequence * mask[..., None].to(sequence.dtype),
        "encoder_hidden_states_mask": mask,
    }


def _ports(encodings: Tensors, _: float, __: ConditioningDtype, rows: int, columns: int) -> dict[str, Tensor]:
    """Text is cut to the longest of the batch; there is no guidance input."""
    from arcflow.architectures.qwen import image_positions, text_positions

    longest = max(int(encodings["encoder_hidden_states_mask"].sum(dim=1).max()), 1)
    return {
        **{name: tensor[:, :longest] for name, tensor in encodings.items()},
        "img_ids": image_positions(rows, columns),
        "txt_ids": text_positions(rows, columns, longest),
    }


PARTS: Mapping[str, Part] = {
    "text": Part("text_encoder", "export.networks.qwen_text"),
    "backbone": Part("transformer", "export.networks.qwen_backbone", merged=True, scheduled=True),
    "vae_decoder": Part("vae", "export.networks.qwen_vae_decoder"),
}
"""The network ``text`` takes ``DROP`` tokens more than the backbone gets."""

MAX_NFE = 8
"""Each evaluation more adds a row of modulation for each of its noise levels (2.2 M numbers) to the backbone."""

_STUDENT = Part("transformer", "export.networks.qwen_student", merged=True)
QWEN = Architecture("qwen", PARTS, _STUDENT, MAX_NFE, _tokenizers, _latent, _encodings, _ports)
