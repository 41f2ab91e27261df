"""What is before and after the backbone at true size: T5-XXL, CLIP-L and the VAE decoder, with random weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu.flux.baseline import randomise
from gpu.records import SkipPartError

if TYPE_CHECKING:
    from torch import Tensor

CONFIGURATIONS = Path(__file__).parents[2] / "benchmarks" / "fullsize" / "models" / "flux.json"
CLIP_TOKENS = 77
_TINY = {
    "text_encoder": {"num_hidden_layers": 1, "vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2},
    "text_encoder_2": {"num_layers": 1, "vocab_size": 64, "d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2},
    "vae": {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "layers_per_block": 1},
}
"""In place of the true sizes, for rehearsals on a CPU."""


@dataclass(frozen=True)
class Ends:
    """Networks in bfloat16, T5's and CLIP's as transformers has them.

    scaling, shift: of the latent; side: tokens of the image's side.
    """

    t5: Any
    clip: Any
    vae: Any
    scaling: float
    shift: float
    side: int

    def decode(self, x: Tensor) -> Tensor:
        """Bytes [height, width, 3] of packed tokens x [1, side * side, 4 * channels]."""
        import torch

        grid = x.unflatten(1, (self.side, self.side)).unflatten(-1, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5)
        latent = (grid.flatten(4, 5).flatten(2, 3) / self.scaling + self.shift).to(torch.bfloat16)
        image: Tensor = self.vae.decode(latent.contiguous(memory_format=torch.channels_last), return_dict=False)[0]
        levels = ((image[0].float() * 0.5 + 0.5).clamp(0, 1) * 255).round()
        return levels.to(torch.uint8).permute(1, 2, 0).contiguous()


def make_ends(where: str, side: int, tiny: bool) -> Ends:
    """The networks on a device. Raises SkipPartError where transformers or diffusers is not installed."""
    try:
        import torch
        from diffusers import AutoencoderKL
        from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
    except ImportError as error:
        raise SkipPartError(f"needs transformers and diffusers: {error}") from error
    given = json.loads(CONFIGURATIONS.read_text(encoding="utf-8"))
    configs = {
        name: given[f"{name}/config.json"] | (_TINY[name] if tiny else {})
        for name in ("text_encoder", "text_encoder_2", "vae")
    }
    vae_config = {name: value for name, value in configs["vae"].items() if not name.startswith("_")}
    torch.manual_seed(1)
    clip = CLIPTextConfig(**configs["text_encoder"])
    with torch.device("meta"):
        models = (
            T5EncoderModel(T5Config(**configs["text_encoder_2"])),
            CLIPTextModel(clip),
            AutoencoderKL(**vae_config),
        )
    t5, text, vae = (_on(model, where) for model in models)
    vae.to(memory_format=torch.channels_last)
    return Ends(t5, text, vae, vae.config.scaling_factor, vae.config.shift_factor, side)


def _on(model: Any, where: str) -> Any:
    """Random weights in bfloat16; buffers that count positions do so again."""
    import torch

    model = model.to(torch.bfloat16).to_empty(device=where)
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1], device=where).expand_as(buffer))
    return randomise(model)
