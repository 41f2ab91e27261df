"""What the VAE decoders of all architectures share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from export.networks.base import Network, Sizes

OTHERS = ("encoder.*", "quant_conv.*")
"""Weights of a VAE that its decoder has no part in."""


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
