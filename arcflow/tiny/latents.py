"""Encoded emoji: several variants of each, on canvases of several sizes, so that the teacher draws all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from arcflow.architectures.flux import pack
from arcflow.tiny.images import Emoji
from arcflow.tiny.teacher import CAPTION_DROPOUT, Batch
from arcflow.tiny.text import TokenTable
from arcflow.training.loop import Iteration

CANVASES = {(64, 64): 8, (96, 64): 1, (64, 96): 1, (80, 80): 1}
"""(width, height) of the images in pixels, and how many variants of each emoji are encoded at that size."""
SHARES = (0.82, 0.06, 0.06, 0.06)
"""How often an iteration's images have each size."""
_AT_ONCE = 64


@dataclass(frozen=True)
class EmojiLatents:
    """means and stds: for each canvas [V, N, C, H/8, W/8], normalised to unit variance; captions: of each emoji."""

    means: tuple[Tensor, ...]
    stds: tuple[Tensor, ...]
    emoji: Emoji
    captions: list[tuple[str, ...]]

    def sample(self, table: TokenTable, count: int, it: Iteration) -> Batch:
        """Emoji by their weights, all on canvases of one size, each with one of its captions."""
        generator = it.generator
        canvas = int(torch.multinomial(torch.tensor(SHARES), 1, generator=generator))
        means, stds = self.means[canvas], self.stds[canvas]
        index = self.emoji.draw(count, generator)
        variant = torch.randint(means.shape[0], (count,), generator=generator)
        mean, std = means[variant, index], stds[variant, index]
        x0 = pack(mean + std * torch.randn(mean.shape, generator=generator))
        chances = torch.rand(count, 2, generator=generator).tolist()
        rows = []
        for i, (dropped, which) in zip(index.tolist(), chances, strict=True):
            own = self.captions[i]
            rows.append(0 if dropped < CAPTION_DROPOUT else table.index[own[int(which * len(own))]])
        return Batch(x0, torch.tensor(rows), (mean.shape[2] // 2, mean.shape[3] // 2))


@torch.no_grad()
def encode_variants(vae: AutoencoderKL, emoji: Emoji) -> tuple[list[Tensor], list[Tensor]]:
    """Posterior mean and standard deviation of every variant, unscaled: for each canvas [V, N, C, H/8, W/8] float32.

    The first variant of each canvas is the emoji as it is.
    """
    means, stds = [], []
    for size, variants in CANVASES.items():
        found: list[Tensor] = []
        for variant in range(variants):
            generator = torch.Generator().manual_seed(variant)
            for rows in torch.arange(len(emoji)).split(_AT_ONCE):
                images = emoji.varied(rows, generator, size) if variant else emoji.rgb(rows, size)
                posterior = vae.encode(images).latent_dist
                found.append(torch.stack([posterior.mean, posterior.std]))
        both = torch.cat(found, dim=1).unflatten(1, (variants, len(emoji)))
        means.append(both[0].clone())
        stds.append(both[1].clone())
    return means, stds
