"""The VAE's decoder: latents to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arcflow.architectures.flux import vae_factor
from export.networks.base import Network, as_computed, as_port, describe
from export.networks.decoder import OTHERS, attend, decoder_network
from export.sources.configs import read_vae_config
from export.weights.files import Selected, open_folder


class _Attend:
    """The middle block's attention over the pixels of an image, as diffusers' processor of that name, in bands."""

    def __call__(self, block: Any, states: Tensor, temb: None = None, **_: None) -> Tensor:
        pixels = block.group_norm(states.flatten(2)).transpose(1, 2)
        query, key, value = (
            part(pixels).unflatten(2, (block.heads, -1)).transpose(1, 2)
            for part in (block.to_q, block.to_k, block.to_v)
        )
        mixed = block.to_out[0](attend(query, key, value).transpose(1, 2).flatten(2))
        result: Tensor = (states + mixed.transpose(1, 2).reshape(states.shape)) / block.rescale_output_factor
        return result


class _Decoder(nn.Module):
    def __init__(self, network: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.to(dtype)
        self.dtype = dtype

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        latents = as_computed(latents, self.dtype)
        if self.network.post_quant_conv is not None:
            latents = self.network.post_quant_conv(latents)
        return (as_port(self.network.decoder(latents)),)


def vae_decoder_network(folder: Path) -> Network:
    """The decoder of an AutoencoderKL saved in ``folder``.

    latents [batch, channels, rows, columns], already ``z / scaling_factor + shift_factor`` -> images
    [batch, 3, f*rows, f*columns] in about [-1, 1], f the VAE's factor.
    """
    from diffusers import AutoencoderKL

    config = read_vae_config(folder)
    channels, factor = int(config["latent_channels"]), vae_factor(config)

    def build(dtype: torch.dtype) -> nn.Module:
        model: Any = AutoencoderKL.from_config(describe(config))
        del model.encoder, model.quant_conv
        if model.decoder.mid_block.attentions[0] is not None:
            model.decoder.mid_block.attentions[0].set_processor(_Attend())
        return _Decoder(model, dtype)

    def reference() -> Callable[..., Sequence[Tensor]]:
        model = AutoencoderKL.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32).eval()
        return lambda latents: (model.decode(latents).sample,)

    return decoder_network(
        channels,
        factor,
        int(config["out_channels"]),
        build=build,
        weights=Selected(open_folder(folder), OTHERS, without=True),
        reference=reference,
        parity_sizes=(
            {"batch": 1, "rows": 8, "columns": 8},
            {"batch": 2, "rows": 4, "columns": 10},
            {"batch": 3, "rows": 12, "columns": 6},
        ),
    )
