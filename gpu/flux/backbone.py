"""FLUX's transformer with a momentum head in plain torch: for the baseline where diffusers is not installed.

Parameters have diffusers' names and shapes, and the arithmetic is the same, operation by operation, so that what is
timed is what a user of diffusers has; tests/gpu/flux/test_backbone.py holds it to diffusers' own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcflow.architectures.head import PATCH_POSITIONS, MomentumHead
from arcflow.field import MomentumField

_TIME_FEATURES = 256
_THETA = 10_000.0
_EPS = 1e-6

Rotation = tuple[Tensor, Tensor]
"""cos and sin, each [tokens, head_dim] float32."""


@dataclass(frozen=True)
class BackboneSize:
    """Sizes as diffusers' configuration has them; the defaults are FLUX.1-dev's."""

    num_layers: int = 19
    num_single_layers: int = 38
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    in_channels: int = 64
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    modes: int = 16

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.num_attention_heads * self.attention_head_dim

    def operations(self, image_tokens: int, text_tokens: int) -> int:
        """Floating-point operations of an evaluation of one image: two a product and sum, products alone."""
        width, tokens, layers = self.width, image_tokens + text_tokens, self.num_layers + self.num_single_layers
        blocks = 12 * width * width * tokens * layers  # q, k, v, out, and an MLP of four times the width.
        attention = 2 * tokens * tokens * width * layers
        vectors = 12 * self.num_layers + 3 * self.num_single_layers + 2  # Of the modulation.
        once = width * (2 * _TIME_FEATURES + self.pooled_projection_dim + (3 + vectors) * width)
        head = self.modes * (self.in_channels + PATCH_POSITIONS) + (self.modes - 1) * PATCH_POSITIONS
        ends = width * (image_tokens * (self.in_channels + head) + text_tokens * self.joint_attention_dim)
        return 2 * (blocks + attention + once + ends)


class _Mlp(nn.Module):
    """Two linears, SiLU between: embeddings of time, guidance and pooled text."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(features, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return embedded


class _Conditioning(nn.Module):
    """Time, guidance and pooled text as one vector [B, width]."""

    def __init__(self, size: BackboneSize) -> None:
        super().__init__()
        self.timestep_embedder = _Mlp(_TIME_FEATURES, size.width)
        self.guidance_embedder = _Mlp(_TIME_FEATURES, size.width)
        self.text_embedder = _Mlp(size.pooled_projection_dim, size.width)

    def forward(self, time: Tensor, guidance: Tensor, pooled: Tensor) -> Tensor:
        steps = self.timestep_embedder(_waves(time).to(pooled.dtype))
        guide = self.guidance_embedder(_waves(guidance).to(pooled.dtype))
        together: Tensor = steps + guide + self.text_embedder(pooled)
        return together


class _Modulation(nn.Module):
    """``parts`` vectors [B, 1, width] from the conditioning."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, parts * width)
        self.parts = parts

    def forward(self, conditioning: Tensor) -> tuple[Tensor, ...]:
        vectors: Tensor = self.linear(F.silu(conditioning))[:, None]
        return vectors.chunk(self.parts, dim=-1)


class _Widening(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.proj(x))


def _feed_forward(width: int) -> nn.ModuleDict:
    """An MLP under the names that diffusers gives it: net.0.proj, net.2."""
    return nn.ModuleDict({"net": nn.Sequential(_Widening(width), nn.Identity(), nn.Linear(4 * width, width))})


class _Attention(nn.Module):
    """Queries, keys and values of the image, and of the text where ``joint``."""

    def __init__(self, size: BackboneSize, joint: bool) -> None:
        super().__init__()
        width, self.head_dim = size.width, size.attention_head_dim
        self.norm_q, self.norm_k = (nn.RMSNorm(self.head_dim, eps=_EPS) for _ in range(2))
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        if joint:
            self.to_out = nn.ModuleList([nn.Linear(width, width)])
            self.norm_added_q, self.norm_added_k = (nn.RMSNorm(self.head_dim, eps=_EPS) for _ in range(2))
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
            self.to_add_out = nn.Linear(width, width)

    def single(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Attention of one sequence [B, S, width]."""
        q, k, v = (self._heads(linear(x)) for linear in (self.to_q, self.to_k, self.to_v))
        return attention(rotate(self.norm_q(q), rotation), rotate(self.norm_k(k), rotation), v)

    def joint(self, x: Tensor, text: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Attention of image and text together: (image, text)."""
        q, k, v = (self._heads(linear(x)) for linear in (self.to_q, self.to_k, self.to_v))
        added = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        text_q, text_k, text_v = (self._heads(linear(text)) for linear in added)
        q = rotate(torch.cat([self.norm_added_q(text_q), self.norm_q(q)], dim=1), rotation)
        k = rotate(torch.cat([self.norm_added_k(text_k), self.norm_k(k)], dim=1), rotation)
        both = attention(q, k, torch.cat([text_v, v], dim=1))
        tokens = text.shape[1]
        image: Tensor = self.to_out[0](both[:, tokens:].contiguous())
        words: Tensor = self.to_add_out(both[:, :tokens].contiguous())
        return image, words

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads


class DoubleBlock(nn.Module):
    """Image and text side by side, one attention over both."""

    def __init__(self, size: BackboneSize) -> None:
        super().__init__()
        self.norm1, self.norm1_context = (_Modulation(size.width, 6) for _ in range(2))
        self.attn = _Attention(size, joint=True)
        self.ff, self.ff_context = (_feed_forward(size.width) for _ in range(2))

    def forward(self, x: Tensor, text: Tensor, conditioning: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.norm1(conditioning)
        c_shift, c_scale, c_gate, c_shift_mlp, c_scale_mlp, c_gate_mlp = self.norm1_context(conditioning)
        normed, c_normed = norm(x) * (1 + scale) + shift, norm(text) * (1 + c_scale) + c_shift
        attended, c_attended = self.attn.joint(normed, c_normed, rotation)
        x = x + gate * attended
        x = x + gate_mlp * self.ff["net"](norm(x) * (1 + scale_mlp) + shift_mlp)
        text = text + c_gate * c_attended
        text = text + c_gate_mlp * self.ff_context["net"](norm(text) * (1 + c_scale_mlp) + c_shift_mlp)
        return x, text


class SingleBlock(nn.Module):
    """Text and image as one sequence, attention beside the MLP."""

    def __init__(self, size: BackboneSize) -> None:
        super().__init__()
        width = size.width
        self.norm = _Modulation(width, 3)
        self.proj_mlp = nn.Linear(width, 4 * width)
        self.proj_out = nn.Linear(5 * width, width)
        self.attn = _Attention(size, joint=False)

    def forward(self, x: Tensor, text: Tensor, conditioning: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        tokens = text.shape[1]
        both = torch.cat([text, x], dim=1)
        shift, scale, gate = self.norm(conditioning)
        normed = norm(both) * (1 + scale) + shift
        hidden = gelu(self.proj_mlp(normed))
        both = both + gate * self.proj_out(torch.cat([self.attn.single(normed, rotation), hidden], dim=2))
        return both[:, tokens:], both[:, :tokens]


class Backbone(nn.Module):
    """The student's network. Called as diffusers' transformer is; returns (MomentumField,)."""

    def __init__(self, size: BackboneSize) -> None:
        super().__init__()
        self.size = size
        self.time_text_embed = _Conditioning(size)
        self.context_embedder = nn.Linear(size.joint_attention_dim, size.width)
        self.x_embedder = nn.Linear(size.in_channels, size.width)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(size) for _ in range(size.num_layers))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(size) for _ in range(size.num_single_layers))
        self.norm_out = _Modulation(size.width, 2)
        self.proj_out = MomentumHead(size.width, size.in_channels, size.modes)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        guidance: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        return_dict: bool = False,
    ) -> tuple[MomentumField]:
        """The field at ``timestep`` [B], a noise level, of tokens ``hidden_states`` [B, S, C].

        encoder_hidden_states [B, T, W], pooled_projections [B, P], guidance [B]; ids [., 3]: positions.
        """
        dtype = hidden_states.dtype
        x = self.x_embedder(hidden_states)
        levels = (timestep.to(dtype) * 1000, guidance.to(dtype) * 1000)
        conditioning = self.time_text_embed(*levels, pooled_projections)
        text, rotation = self.context_embedder(encoder_hidden_states), self.rotation(txt_ids, img_ids)
        for block in self.transformer_blocks:
            x, text = block(x, text, conditioning, rotation)
        scale, shift = self.norm_out(conditioning)
        return (self.proj_out(norm(self.singles(x, text, conditioning, rotation)) * (1 + scale) + shift),)

    def rotation(self, txt_ids: Tensor, img_ids: Tensor) -> Rotation:
        """Of all positions, the text's first."""
        return rotations(torch.cat([txt_ids, img_ids]), self.size.axes_dims_rope)

    def singles(self, x: Tensor, text: Tensor, conditioning: Tensor, rotation: Rotation) -> Tensor:
        """The image after the single blocks."""
        for block in self.single_transformer_blocks:
            x, text = block(x, text, conditioning, rotation)
        return x


def rotations(ids: Tensor, axes: tuple[int, ...]) -> Rotation:
    """Cosines and sines of the positions ``ids`` [tokens, axes], in float64 and then float32."""
    angles = []
    for axis, dim in enumerate(axes):
        steps = torch.arange(0, dim, 2, dtype=torch.float64, device=ids.device) / dim
        angles.append(torch.outer(ids[:, axis].double(), 1.0 / _THETA**steps))
    turned = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
    return turned.cos().float(), turned.sin().float()


def inputs(size: BackboneSize, side: int, text_tokens: int, device: Any, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """Random inputs of an image of ``side`` x ``side`` tokens, without the noise level."""
    options = {"device": device, "dtype": dtype}
    ids = torch.zeros(side, side, 3)
    ids[..., 1], ids[..., 2] = torch.arange(side)[:, None], torch.arange(side)[None]
    return {
        "encoder_hidden_states": torch.randn(1, text_tokens, size.joint_attention_dim, **options),
        "pooled_projections": torch.randn(1, size.pooled_projection_dim, **options),
        "guidance": torch.full((1,), 3.5, device=device),
        "img_ids": ids.reshape(-1, 3).to(**options),
        "txt_ids": torch.zeros(text_tokens, 3, **options),
    }


def _waves(level: Tensor) -> Tensor:
    half = _TIME_FEATURES // 2
    rates = torch.exp(-math.log(_THETA) * torch.arange(half, dtype=torch.float32, device=level.device) / half)
    angles = level[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=_EPS)


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, S, heads, head_dim] each -> [B, S, width]."""
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return mixed.transpose(1, 2).flatten(2, 3)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    cos, sin = (part[None, :, None] for part in rotation)
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)
