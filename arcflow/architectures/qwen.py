"""The Qwen-Image family: how its backbone is built, called and adapted. One such file an architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from arcflow.architectures.conditioning import ConditioningDtype
from arcflow.architectures.packing import pack as pack
from arcflow.architectures.packing import unpack as unpack
from arcflow.errors import BackboneError

NAME = "qwen"
PIPELINE_CLASS = "QwenImagePipeline"
ADAPTER_CLASS = "ArcQwenImageTransformer2DModel"
TEXT_PARTS = ("text_encoder", "tokenizer")
"""Folders of a pipeline that encode prompts."""
VAE_FACTOR = 8
"""Pixels along each side of a latent cell of the published base."""
EMPTY: str | None = " "
"""The prompt that guidance is measured from."""
GUIDANCE = 4.0
"""Scale of the classifier-free guidance that the teacher is distilled with; the student has it built in."""

LORA_TARGETS = (
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
    "txt_mlp.net.0.proj",
    "txt_mlp.net.2",
    "timestep_embedder.linear_1",
    "timestep_embedder.linear_2",
)
"""Suffixes of the linears that carry LoRA, but for those of :func:`unused_linears`."""

_FP8_LAYERS = (
    "transformer_blocks.*.attn.to_[qkv].weight",
    "transformer_blocks.*.attn.add_[qkv]_proj.weight",
    "transformer_blocks.*.attn.to_out.0.weight",
    "transformer_blocks.*.img_mlp.net.*.weight",
)
_FP8_TEXT_LAYERS = ("attn.to_add_out.weight", "txt_mlp.net.*.weight")
"""The same of each block but the last one, whose text feeds nothing."""

_ROPE_THETA = 10000
_FOREIGN = frozenset({"pooled_projection_dim"})
"""Keys of Qwen-Image's published configuration that its own transformer does not know."""
_UNSUPPORTED = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
"""Switches of the family's editing and layered models, whose inputs are others."""


@dataclass(frozen=True)
class Condition:
    """What a Qwen-Image backbone is told of the image to make.

    sequence [B, T, W] from Qwen2.5-VL; mask [B, T], True (or not 0) where a token is no padding; rows, columns: the
    grid of image tokens. There is no guidance input.
    """

    sequence: Tensor
    mask: Tensor
    rows: int
    columns: int

    @property
    def image_tokens(self) -> int:
        """Tokens of the image."""
        return self.rows * self.columns

    def __getitem__(self, index: Any) -> Condition:
        """The condition of some of the batch's rows."""
        return Condition(self.sequence[index], self.mask[index], self.rows, self.columns)

    def to(self, device: torch.device) -> Condition:
        """The condition on another device."""
        return Condition(self.sequence.to(device), self.mask.to(device), self.rows, self.columns)


def build_backbone(config: Mapping[str, Any]) -> QwenImageTransformer2DModel:
    """An uninitialised backbone of that diffusers configuration.

    Raises BackboneError for an editing or layered variant, and where the channels do not fit: a packed token must
    have as many channels coming in (``in_channels``) as going out (``patch_size``^2 ``out_channels``).
    """
    for switch in _UNSUPPORTED:
        if config.get(switch, False):
            raise BackboneError(f"the Qwen-Image backbone has {switch}; only the text-to-image model is supported")
    model: Any = QwenImageTransformer2DModel.from_config({k: v for k, v in config.items() if k not in _FOREIGN})
    if model.proj_out.out_features != model.img_in.in_features:
        raise BackboneError(
            f"the Qwen-Image backbone takes tokens of {model.img_in.in_features} channels and returns "
            f"{model.proj_out.out_features}; use the base model's own configuration (an adapter's has no patch_size)"
        )
    with torch.device("cpu"):
        # Tables, not weights: no file could fill them if the backbone is built without memory.
        model.pos_embed = QwenEmbedRope(_ROPE_THETA, list(model.config.axes_dims_rope), scale_rope=True)
    backbone: QwenImageTransformer2DModel = model
    return backbone


def fp8_layers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Patterns (fnmatch) of the weights that FP8 bundles quantise, by state-dict name, of that configuration.

    The attention's and the MLPs' linears of both streams: all that grows with the tokens.
    """
    blocks = int(config["num_layers"])
    text = (f"transformer_blocks.{block}.{name}" for block in range(blocks - 1) for name in _FP8_TEXT_LAYERS)
    return (*_FP8_LAYERS, *text)


def unused_linears(backbone: nn.Module) -> frozenset[str]:
    """Names of linears that match LORA_TARGETS but whose results go nowhere: the last block's text MLP."""
    last = len(backbone.transformer_blocks) - 1  # type: ignore[arg-type]
    return frozenset(f"transformer_blocks.{last}.txt_mlp.net.{layer}" for layer in ("0.proj", "2"))


def as_trained(values: Tensor, dtype: ConditioningDtype) -> Tensor:
    """Noise levels, float32 of any shape, as a backbone saw them that was trained in ``dtype``.

    In bfloat16 diffusers' transformer rounds them; its factor of 1000 comes after that, in float32.
    """
    return values if dtype == "float32" else values.bfloat16().float()


def evaluate(
    backbone: nn.Module, x: Tensor, sigma: Tensor, condition: Condition, trained: ConditioningDtype = "float32"
) -> Any:
    """One network evaluation at noise levels ``sigma`` [B]: whatever the backbone's ``proj_out`` returns.

    A velocity [B, S, C] from a teacher, a MomentumField from a student. The backbone multiplies sigma by 1000 itself.
    trained: what the backbone was trained in, which matters where it now computes in more.
    """
    return backbone(
        hidden_states=x,
        encoder_hidden_states=condition.sequence,
        encoder_hidden_states_mask=condition.mask,
        timestep=as_trained(sigma, trained),
        img_shapes=[[(1, condition.rows, condition.columns)]] * x.shape[0],
        return_dict=False,
    )[0]


def image_positions(rows: int, columns: int) -> Tensor:
    """Rotary positions [rows*columns, 3] float32 of the image tokens: (frame 0, row, column), centred on zero.

    A side of n tokens takes the positions from -(n - n//2) to n//2 - 1, as the backbone's ``scale_rope`` has it.
    """
    grid = torch.zeros(rows, columns, 3)
    grid[..., 1] = (torch.arange(rows) - (rows - rows // 2))[:, None]
    grid[..., 2] = (torch.arange(columns) - (columns - columns // 2))[None]
    return grid.reshape(rows * columns, 3)


def text_positions(rows: int, columns: int, tokens: int) -> Tensor:
    """Rotary positions [tokens] float32 of the text, the same on all axes: they begin where the image's end."""
    return torch.arange(tokens, dtype=torch.float32) + max(rows // 2, columns // 2)


def encoding(pipeline: Any, prompt: str, tokens: int) -> dict[str, Tensor]:
    """What the text encoder of a diffusers pipeline says of one prompt: sequence [T, W], T at most ``tokens``."""
    sequence, mask = pipeline.encode_prompt(prompt, max_sequence_length=tokens)
    return {"sequence": sequence[0] if mask is None else sequence[0, mask[0].bool()]}


def condition(encodings: Sequence[Mapping[str, Tensor]], _guidance: float, rows: int, columns: int) -> Condition:
    """The condition of a batch of encoded prompts for images of one size, padded on the right to the longest."""
    sequences = [each["sequence"] for each in encodings]
    sequence = pad_sequence(sequences, batch_first=True)
    lengths = torch.tensor([len(each) for each in sequences], device=sequence.device)
    mask = torch.arange(sequence.shape[1], device=sequence.device)[None] < lengths[:, None]
    return Condition(sequence, mask, rows, columns)


def encode(pipeline: Any, prompt: str, tokens: int, guidance: float, rows: int, columns: int) -> Condition:
    """The condition of one prompt of at most that many tokens, encoded by its diffusers pipeline."""
    return condition([encoding(pipeline, prompt, tokens)], guidance, rows, columns)


def guided(guidance: float) -> dict[str, Any]:
    """How the diffusers pipeline is told of the teacher's guidance: it evaluates with and without the prompt."""
    return {"true_cfg_scale": guidance, "negative_prompt": EMPTY}


def vae_factor(config: Mapping[str, Any]) -> int:
    """Pixels a latent cell, of a VAE's configuration. Raises KeyError where it is another VAE's."""
    return int(2 ** len(config["temperal_downsample"]))


def decode(vae: Any, latents: Tensor) -> Tensor:
    """The images [B, 3, 8H, 8W] of latents [B, C, H, W]: the VAE is a video's, and an image one frame."""
    mean, std = (
        torch.tensor(values, dtype=latents.dtype, device=latents.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    images: Tensor = vae.decode(latents[:, :, None] * std + mean).sample[:, :, 0]
    return images
