"""The whole Qwen-Image student: packed tokens, prompt and noise level to a momentum field.

It is what is calibrated, and what the exported backbone is held to (:mod:`export.networks.qwen_backbone`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from arcflow.architectures import qwen
from export.networks.base import Network, Sizes, as_computed, describe
from export.networks.student import as_ports, merged_anew, student_network
from export.weights.merge import MergedStudent

_THETA = 10000.0
"""Base of diffusers' frequencies, which its configuration does not name."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each [tokens, head width] float32."""


class Rope(nn.Module):
    """Qwen-Image's rotary embedding in real numbers (diffusers' is complex, which engines do not take).

    Takes the place of diffusers' module, whose forward it is called as; positions come as tensors, not as the sizes
    of a grid, so that nothing of the grid is fixed by a trace.
    """

    def __init__(self, axes: Sequence[int], theta: float = _THETA) -> None:
        super().__init__()
        self.axes = tuple(axes)
        self.theta = theta

    def forward(self, ids: tuple[Tensor, Tensor], **_: Any) -> Rotation:
        """(img_ids [image_tokens, axes], txt_ids [text_tokens]) -> rotation of text and image, in that order."""
        image, text = ids
        positions = torch.cat([text[:, None].expand(-1, len(self.axes)), image])
        angles = []
        for axis, width in enumerate(self.axes):
            exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
            frequencies = 1.0 / self.theta**exponents
            angles.append(torch.outer(positions[:, axis], frequencies).repeat_interleave(2, dim=1))
        both = torch.cat(angles, dim=-1)
        return both.cos(), both.sin()


class _JointAttention:
    """Attention over text and image together, in place of diffusers' processor: real rotations, one given mask."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: Rotation,
        encoder_hidden_states_mask: None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image states [B, S, D], text states [B, T, D], mask bool [B, 1, T + S, T + S] -> both streams' results."""
        from diffusers.models.embeddings import apply_rotary_emb

        def joint(of_text: nn.Module, norm_text: nn.Module, of_image: nn.Module, norm_image: nn.Module) -> Tensor:
            text = norm_text(of_text(encoder_hidden_states).unflatten(-1, (attn.heads, -1)))
            image = norm_image(of_image(hidden_states).unflatten(-1, (attn.heads, -1)))
            return torch.cat([text, image], dim=1)

        query = joint(attn.add_q_proj, attn.norm_added_q, attn.to_q, attn.norm_q)
        key = joint(attn.add_k_proj, attn.norm_added_k, attn.to_k, attn.norm_k)
        value = joint(attn.add_v_proj, nn.Identity(), attn.to_v, nn.Identity())
        query, key = (apply_rotary_emb(states, image_rotary_emb, sequence_dim=1) for states in (query, key))
        mixed = scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=attention_mask
        )
        states = mixed.transpose(1, 2).flatten(2)
        tokens = encoder_hidden_states.shape[1]
        return attn.to_out[0](states[:, tokens:]), attn.to_add_out(states[:, :tokens])


class Student(nn.Module):
    """The student in torch, in the type that it is to compute in.

    see: what the network is given of the noise levels [batch] float32. It is called here because sigma is fed as the
    student saw it in training, and diffusers' forward would round it once more.
    """

    def __init__(self, network: Any, see: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.see = see
        network.pos_embed = Rope(network.config.axes_dims_rope)
        for block in network.transformer_blocks:
            block.attn.set_processor(_JointAttention())
        self.network = network
        self.dtype = dtype
        self.to(dtype)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, image = hidden_states.shape[:2]
        ones = torch.ones((batch, image), dtype=torch.bool, device=hidden_states.device)
        keys = torch.cat([encoder_hidden_states_mask.bool(), ones], dim=1)
        tokens = keys.shape[1]
        # The mask goes to the attention directly: diffusers' own handling of it makes its length a constant. It is
        # expanded because ONNX Runtime's Attention does not broadcast rows.
        field = self.network(
            hidden_states=as_computed(hidden_states, self.dtype),
            encoder_hidden_states=as_computed(encoder_hidden_states, self.dtype),
            timestep=self.see(timestep),
            img_shapes=(img_ids, txt_ids),
            attention_kwargs={"attention_mask": keys[:, None, None, :].expand(-1, 1, tokens, -1)},
            return_dict=False,
        )[0]
        return as_ports(field)


def with_sinusoids(network: Any, dtype: torch.dtype) -> Student:
    """The student as it was trained."""
    sinusoids, network.time_text_embed.time_proj = network.time_text_embed.time_proj, nn.Identity()
    return Student(network, sinusoids.forward, dtype)


class _Reference(nn.Module):
    """diffusers' own forward, which makes positions from the size of the grid, called as the traced module is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, hidden_states: Tensor, timestep: Tensor, img_ids: Tensor, **text: Tensor) -> Sequence[Tensor]:
        _, rows, columns = (int(axis.unique().numel()) for axis in img_ids.T)
        sequence, mask = text["encoder_hidden_states"], text["encoder_hidden_states_mask"]
        condition = qwen.Condition(sequence, mask, rows, columns)
        field = qwen.evaluate(self.network, hidden_states, timestep, condition)
        return as_ports(field)


def qwen_student_network(_: Path, student: MergedStudent) -> Network:
    """The network of a merged Qwen-Image student.

    hidden_states [batch, image_tokens, C], encoder_hidden_states [batch, text_tokens, W], encoder_hidden_states_mask
    int64 [batch, text_tokens] (1 = token, 0 = padding, in any order), timestep [batch] (sigma in [0, 1]), img_ids
    [image_tokens, 3] and txt_ids [text_tokens] (positions as arcflow gives them), all float32 but the mask ->
    the field (:func:`export.networks.student.student_network`). The reference is diffusers' own forward.
    """
    from diffusers import QwenImageTransformer2DModel

    from arcflow.students import build_student

    config = describe(student.config)
    channels, width = int(config["in_channels"]), int(config["joint_attention_dim"])

    def build(dtype: torch.dtype) -> nn.Module:
        return with_sinusoids(build_student(config, student.modes, qwen.NAME), dtype)

    def examples(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        batch, text = sizes["batch"], sizes["text_tokens"]
        rows, columns = sizes["rows"], sizes["image_tokens"] // sizes["rows"]
        lengths = torch.randint(1, text + 1, (batch, 1), generator=generator)
        lengths[0] = text
        return {
            "hidden_states": torch.randn(batch, rows * columns, channels, generator=generator),
            "encoder_hidden_states": torch.randn(batch, text, width, generator=generator),
            "encoder_hidden_states_mask": (torch.arange(text) < lengths).long(),
            "timestep": 1.0 - torch.rand(batch, generator=generator),
            "img_ids": qwen.image_positions(rows, columns),
            "txt_ids": qwen.text_positions(rows, columns, text),
        }

    return student_network(
        student,
        inputs={
            "hidden_states": ("float32", ("batch", "image_tokens", channels)),
            "encoder_hidden_states": ("float32", ("batch", "text_tokens", width)),
            "encoder_hidden_states_mask": ("int64", ("batch", "text_tokens")),
            "timestep": ("float32", ("batch",)),
            "img_ids": ("float32", ("image_tokens", 3)),
            "txt_ids": ("float32", ("text_tokens",)),
        },
        build=build,
        reference=lambda: _Reference(merged_anew(student, QwenImageTransformer2DModel)),
        examples=examples,
        parity_sizes=(
            {"batch": 1, "image_tokens": 16, "rows": 4, "text_tokens": 12},
            {"batch": 2, "image_tokens": 15, "rows": 3, "text_tokens": 5},
            {"batch": 3, "image_tokens": 63, "rows": 9, "text_tokens": 20},
        ),
        fp8_layers=qwen.fp8_layers(config),
    )
