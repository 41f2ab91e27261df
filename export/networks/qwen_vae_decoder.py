"""The decoder of Qwen-Image's video VAE, for one frame: latents to images, by 2-D convolutions.

The decoder's convolutions are causal in time: they see the frame they make and those before it, which for a first
frame are zeros. Of a 3-D kernel only the last time step then meets data, and the 2-D convolution with that slice is
the same sum, exactly. Temporal upsampling begins with the second frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from arcflow.architectures.qwen import vae_factor
from export.networks.base import Network, as_computed, as_port, describe
from export.networks.decoder import OTHERS, attend, decoder_network
from export.sources.configs import read_qwen_vae_config
from export.weights.files import Selected, TensorInfo, Weights, open_folder

_TIME = 2
"""The axis of time in a 3-D convolution's weight [out, in, time, rows, columns], and in a video."""


class FrameWeights(Weights):
    """The weights of a causal video network as its first frame meets them: 3-D kernels without their time axis."""

    def __init__(self, video: Weights) -> None:
        self.video = video
        self.source = video.source

    def __getitem__(self, name: str) -> TensorInfo:
        info = self.video[name]
        shape = info.shape
        return TensorInfo(info.dtype, (*shape[:_TIME], *shape[_TIME + 1 :]), 0) if len(shape) == 5 else info

    def __iter__(self) -> Iterator[str]:
        return iter(self.video)

    def __len__(self) -> int:
        return len(self.video)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of one tensor; of a 3-D kernel, of the last time step."""
        rows = self.video.read_rows(name, start, stop)
        return rows.select(_TIME, -1).contiguous() if rows.ndim == 5 else rows


class _FrameNorm(nn.Module):
    """diffusers' RMS norm over the channels of a image: to length one, times the root of their number and a gain."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.gamma = norm.gamma
        self.scale = norm.scale

    def forward(self, states: Tensor) -> Tensor:
        unit = normalize(states.float(), dim=1).to(states.dtype)
        result: Tensor = unit * self.scale * self.gamma.reshape(-1, 1, 1)
        return result


class _FrameAttention(nn.Module):
    """The middle block's attention over the pixels of an image, with one head."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm, self.to_qkv, self.proj = block.norm, block.to_qkv, block.proj

    def forward(self, states: Tensor) -> Tensor:
        pixels = self.to_qkv(self.norm(states)).flatten(2).transpose(1, 2)[:, None]
        mixed = attend(*pixels.chunk(3, dim=-1))
        result: Tensor = states + self.proj(mixed[:, 0].transpose(1, 2).reshape(states.shape))
        return result


class _FrameUpsample(nn.Module):
    """Doubling of both sides and the convolution after it; there is no temporal part for a first frame."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        # "nearest-exact" and "nearest" copy the same pixels where the factor is two; the second is one ONNX operation.
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), block.resample[1])

    def forward(self, states: Tensor, *_: Any) -> Tensor:
        result: Tensor = self.resample(states)
        return result


class _Decoder(nn.Module):
    def __init__(self, network: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.to(dtype)

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        states = self.network.post_quant_conv(as_computed(latents, self.dtype))
        return (as_port(self.network.decoder(states).clamp(-1.0, 1.0)),)


def qwen_vae_decoder_network(folder: Path) -> Network:
    """The decoder of an AutoencoderKLQwenImage saved in ``folder``.

    latents [batch, channels, rows, columns], already ``z * latents_std + latents_mean`` -> images
    [batch, 3, f*rows, f*columns] in [-1, 1], f the VAE's factor.
    """
    from diffusers import AutoencoderKLQwenImage

    config = read_qwen_vae_config(folder)
    channels, factor = int(config["z_dim"]), vae_factor(config)

    def build(dtype: torch.dtype) -> nn.Module:
        model: Any = AutoencoderKLQwenImage.from_config(describe(config))
        del model.encoder, model.quant_conv
        _use_frames(model)
        return _Decoder(model, dtype)

    def reference() -> Callable[..., Sequence[Tensor]]:
        load = AutoencoderKLQwenImage.from_pretrained
        model = load(folder, local_files_only=True, torch_dtype=torch.float32).eval()
        return lambda latents: (model.decode(latents.unsqueeze(_TIME)).sample.squeeze(_TIME),)

    return decoder_network(
        channels,
        factor,
        int(config.get("input_channels", 3)),
        build=build,
        weights=FrameWeights(Selected(open_folder(folder), (*OTHERS, "*.time_conv.*"), without=True)),
        reference=reference,
        parity_sizes=(
            {"batch": 1, "rows": 8, "columns": 8},
            {"batch": 2, "rows": 4, "columns": 10},
            {"batch": 3, "rows": 7, "columns": 6},
        ),
    )


def _use_frames(model: nn.Module) -> None:
    """Put what each part of the decoder is to an image in its place, under the same name."""
    from diffusers.models.autoencoders import autoencoder_kl_qwenimage as video

    for name, module in list(model.named_modules()):
        parent, _, attribute = name.rpartition(".")
        if getattr(model.get_submodule(parent), attribute, None) is not module:
            continue  # It went with the part that it was in.
        match module:
            case video.QwenImageCausalConv3d():
                left, _, top, *_ = module._padding
                rows, columns = module.kernel_size[1:]
                flat: nn.Module = nn.Conv2d(
                    module.in_channels, module.out_channels, (rows, columns), padding=(top, left)
                )
            case video.QwenImageRMS_norm():
                flat = _FrameNorm(module)
            case video.QwenImageAttentionBlock():
                flat = _FrameAttention(module)
            case video.QwenImageResample():
                flat = _FrameUpsample(module)
            case _:
                continue
        setattr(model.get_submodule(parent), attribute, flat)
