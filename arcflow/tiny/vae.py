"""The VAE of a small teacher, in the form of FLUX's."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from arcflow.recipe import LoopConfig
from arcflow.training.loop import Iteration


def build_vae(channels: tuple[int, ...], latent_channels: int, size: int) -> AutoencoderKL:
    """An untrained VAE in FLUX's form: no quant convolutions, attention in the middle, scalar scale and shift.

    channels: those of each level, each half as wide as the one before; size: of the usual image, in pixels.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=size,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


class Source(Protocol):
    """Images to train on."""

    def batch(self, count: int, generator: torch.Generator) -> Tensor:
        """So many of them, float32 [count, 3, height, width] in [-1, 1]."""


def vae_step(images: Source, config: LoopConfig) -> Any:
    """The training step: L1 + MSE + 0.5 x gradient L1 + 1e-3 x KL, each a mean over its elements."""

    def step(module: nn.Module, it: Iteration) -> dict[str, float]:
        x = images.batch(config.batch, it.generator)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            posterior = module.encode(x).latent_dist  # type: ignore[operator]
            noise = torch.randn(posterior.mean.shape, generator=it.generator)
            y = module.decode(posterior.mean + posterior.std * noise).sample  # type: ignore[operator]
        y = y.float()
        mse = F.mse_loss(y, x)
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1.0 - posterior.logvar.float()).mean()
        loss = F.l1_loss(y, x) + mse + 0.5 * _gradient_l1(y, x) + 1e-3 * kl
        loss.backward()
        psnr = 10.0 * torch.log10(4.0 / mse.detach())
        return {
            "loss": float(loss.detach()),
            "psnr_db": float(psnr),
            "kl": float(kl.detach()),
        }

    return step


def _gradient_l1(y: Tensor, x: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical pixel differences: what keeps edges sharp."""
    return F.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + F.l1_loss(y.diff(dim=-2), x.diff(dim=-2))
