"""Attention over an image's pixels, in bands where no kernel does all of it at once."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from export.networks.base import Network
from export.networks.cost import cost_of
from export.networks.decoder import BANDS, attend, decoder_network


class _Mixing(torch.nn.Module):
    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor]:
        pixels = latents.flatten(2).transpose(1, 2)[:, None]
        return (attend(pixels, pixels, pixels)[:, 0].transpose(1, 2).reshape(latents.shape),)


def mixing(channels: int) -> Network:
    unread = {"weights": {}, "reference": _Mixing, "parity_sizes": ()}
    return decoder_network(channels, 1, channels, build=lambda dtype: _Mixing(), **unread)


@pytest.mark.parametrize("pixels", [BANDS, 42, 1023])
@pytest.mark.parametrize("channels", [8, 64, 384])
def test_bands_compute_what_attention_does(channels: int, pixels: int) -> None:
    generator = torch.Generator().manual_seed(pixels)
    query, key, value = (torch.randn(2, 1, pixels, channels, generator=generator) for _ in range(3))
    torch.testing.assert_close(
        attend(query, key, value), scaled_dot_product_attention(query, key, value), rtol=1e-5, atol=1e-6
    )


def test_a_quarter_of_the_scores_is_there_at_a_time() -> None:
    side = 64
    peaks = {
        channels: cost_of(mixing(channels), {"batch": 1, "rows": side, "columns": side}, ()).peak / 4
        for channels in (256, 257)
    }
    scores = side**4
    assert peaks[256] > 2 * scores
    assert peaks[257] < 0.75 * scores
