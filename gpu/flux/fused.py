"""The student's network with the products of one input side by side: one matrix for q, k and v, one for q, k, v and the
MLP of a single block. So an input is read, and in FP8 quantised, once.

Made from gpu/flux/backbone.py's, whose weights it takes over; the arithmetic is the same, sums in another order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu.flux.backbone import Backbone, BackboneSize, Rotation, attention, gelu, norm, rotate


class Projection(nn.Module):
    """Linears of one input as one: their rows one below the other. [..., in] -> [..., sum of out]."""

    weight: Tensor
    bias: Tensor

    def __init__(self, linears: Iterable[nn.Linear]) -> None:
        super().__init__()
        given = list(linears)
        self.register_buffer("weight", torch.cat([linear.weight.detach() for linear in given]))
        self.register_buffer("bias", torch.cat([linear.bias.detach() for linear in given]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Attend(nn.Module):
    """Attention over queries, keys and values [B, S, heads, head_dim] -> [B, S, width]."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v)


class FusedDouble(nn.Module):
    """Image and text side by side, one attention over both."""

    def __init__(self, block: Any, size: BackboneSize) -> None:
        """block: a DoubleBlock."""
        super().__init__()
        attn, self.head_dim = block.attn, size.attention_head_dim
        self.norm1, self.norm1_context = block.norm1, block.norm1_context
        self.norm_q, self.norm_k = attn.norm_q, attn.norm_k
        self.norm_added_q, self.norm_added_k = attn.norm_added_q, attn.norm_added_k
        self.qkv = Projection((attn.to_q, attn.to_k, attn.to_v))
        self.added = Projection((attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
        self.out, self.added_out = Projection(_linears(attn.to_out)), Projection((attn.to_add_out,))
        self.up, self.down = (Projection((linear,)) for linear in _linears(block.ff))
        self.added_up, self.added_down = (Projection((linear,)) for linear in _linears(block.ff_context))
        self.attend = Attend()

    def forward(self, x: Tensor, text: Tensor, conditioning: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.norm1(conditioning)
        c_shift, c_scale, c_gate, c_shift_mlp, c_scale_mlp, c_gate_mlp = self.norm1_context(conditioning)
        q, k, v = _heads(self.qkv(norm(x) * (1 + scale) + shift), self.head_dim, 3)
        text_q, text_k, text_v = _heads(self.added(norm(text) * (1 + c_scale) + c_shift), self.head_dim, 3)
        q = rotate(torch.cat([self.norm_added_q(text_q), self.norm_q(q)], dim=1), rotation)
        k = rotate(torch.cat([self.norm_added_k(text_k), self.norm_k(k)], dim=1), rotation)
        both, tokens = self.attend(q, k, torch.cat([text_v, v], dim=1)), text.shape[1]
        x = x + gate * self.out(both[:, tokens:])
        x = x + gate_mlp * self.down(gelu(self.up(norm(x) * (1 + scale_mlp) + shift_mlp)))
        text = text + c_gate * self.added_out(both[:, :tokens])
        mixed = norm(text) * (1 + c_scale_mlp) + c_shift_mlp
        return x, text + c_gate_mlp * self.added_down(gelu(self.added_up(mixed)))


class FusedSingle(nn.Module):
    """Text and image as one sequence, attention beside the MLP, one product for both."""

    def __init__(self, block: Any, size: BackboneSize) -> None:
        """block: a SingleBlock."""
        super().__init__()
        attn, self.head_dim, self.width = block.attn, size.attention_head_dim, size.width
        self.norm, self.norm_q, self.norm_k = block.norm, attn.norm_q, attn.norm_k
        self.wide = Projection((attn.to_q, attn.to_k, attn.to_v, block.proj_mlp))
        self.out = Projection((block.proj_out,))
        self.attend = Attend()

    def forward(self, both: Tensor, conditioning: Tensor, rotation: Rotation) -> Tensor:
        shift, scale, gate = self.norm(conditioning)
        wide, hidden = self.wide(norm(both) * (1 + scale) + shift).split([3 * self.width, 4 * self.width], dim=-1)
        q, k, v = _heads(wide, self.head_dim, 3)
        attended = self.attend(rotate(self.norm_q(q), rotation), rotate(self.norm_k(k), rotation), v)
        out: Tensor = both + gate * self.out(torch.cat([attended, gelu(hidden)], dim=-1))
        return out


class FusedBackbone(Backbone):
    """The backbone with fused blocks. Positions are those of the first call.

    Takes the backbone's weights: a block of it is gone as soon as its fused twin is there.
    """

    def __init__(self, backbone: Backbone) -> None:
        nn.Module.__init__(self)
        self.size = backbone.size
        self.time_text_embed, self.context_embedder = backbone.time_text_embed, backbone.context_embedder
        self.x_embedder, self.norm_out, self.proj_out = backbone.x_embedder, backbone.norm_out, backbone.proj_out
        doubles, singles = list(backbone.transformer_blocks), list(backbone.single_transformer_blocks)
        backbone.transformer_blocks, backbone.single_transformer_blocks = nn.ModuleList(), nn.ModuleList()
        self.transformer_blocks, self.single_transformer_blocks = nn.ModuleList(), nn.ModuleList()
        while doubles:
            self.transformer_blocks.append(FusedDouble(doubles.pop(0), self.size))
        while singles:
            self.single_transformer_blocks.append(FusedSingle(singles.pop(0), self.size))
        self._rotation: Rotation | None = None

    def rotation(self, txt_ids: Tensor, img_ids: Tensor) -> Rotation:
        if self._rotation is None:
            self._rotation = super().rotation(txt_ids, img_ids)
        return self._rotation

    def singles(self, x: Tensor, text: Tensor, conditioning: Tensor, rotation: Rotation) -> Tensor:
        both = torch.cat([text, x], dim=1)
        for block in self.single_transformer_blocks:
            both = block(both, conditioning, rotation)
        return both[:, text.shape[1] :]


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def _heads(x: Tensor, head_dim: int, parts: int) -> tuple[Tensor, ...]:
    """[B, S, parts * width] -> parts of [B, S, heads, head_dim]."""
    split: Tensor = x.unflatten(-1, (parts, -1, head_dim))
    return split.unbind(2)
