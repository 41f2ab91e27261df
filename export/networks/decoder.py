"""What the VAE decoders of all architectures share."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from export.networks.base import Network, Sizes
from export.precision import FUSED_HEADS

OTHERS = ("encoder.*", "quant_conv.*")
"""Weights of a VAE that its decoder has no part in."""

BANDS = 4
"""Parts of an image's pixels that look at all pixels one after the other: a quarter of the scores at a time. The least
image has as many pixels."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over an image's pixels [batch, heads, pixels, channels], in bands where no kernel does it at once.

    A head of 384 or 512 channels has no kernel: all scores are made, 1.5 GB at 1328x1328 in 16 bits and as much for
    their softmax. Written out, for TensorRT for RTX 1.7 crashes on Attention nodes over parts of one query.
    """
    channels, pixels = query.shape[-1], query.shape[-2]
    if channels in FUSED_HEADS:
        return scaled_dot_product_attention(query, key, value)
    keys = key.transpose(-2, -1) * channels**-0.5
    ends = [pixels * band // BANDS for band in range(BANDS + 1)]
    mixed: list[Tensor] = []
    for first, last in itertools.pairwise(ends):
        band = query[..., first:last, :]
        if mixed:
            # Adds zero, so that a builder cannot run the bands side by side.
            band = band + mixed[-1].amax((-2, -1), keepdim=True).clamp(0, 0)
        mixed.append((band @ keys).float().softmax(dim=-1).to(value.dtype) @ value)
    return torch.cat(mixed, dim=-2)


def decoder_network(channels: int, factor: int, colours: int, **parts: Any) -> Network:
    """A VAE decoder: latents [batch, channels, rows, columns] -> images [batch, colours, f*rows, f*columns].

    factor: f; parts: what else a Network has.
    """

    def examples(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        shape = (sizes["batch"], channels, sizes["rows"], sizes["columns"])
        return {"latents": torch.randn(shape, generator=generator)}

    return Network(
        name="vae_decoder",
        ports_in={"latents": ("float32", ("batch", channels, "rows", "columns"))},
        ports_out={"images": ("float32", ("batch", colours, f"{factor}*rows", f"{factor}*columns"))},
        bounds={"batch": (1, 1024), "rows": (2, 1024), "columns": (2, 1024)},
        examples=examples,
        **parts,
    )
