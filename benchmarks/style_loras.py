"""Style LoRAs for :mod:`benchmarks.style_scales`: trained on a small teacher, or random factors."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from export.students.prompts import Prompted
    from export.students.subject import Subject

RANK, BATCH, RATE = 8, 16, 2e-3
IMAGES = 4
"""Images a prompt to train a style on."""
_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_mlp", "proj_out")


def _negative(images: Tensor) -> Tensor:
    return -images


def _outline(images: Tensor) -> Tensor:
    from torch.nn import functional

    thick = functional.max_pool2d(images, 3, 1, 1) + functional.max_pool2d(-images, 3, 1, 1)
    return thick.clamp(0.0, 2.0) - 1.0


def _hatched(images: Tensor) -> Tensor:
    import torch

    rows = torch.arange(images.shape[-2])[:, None] + torch.arange(images.shape[-1])[None]
    return torch.where(rows % 4 < 2, images, -torch.ones_like(images))


STYLES: Mapping[str, Callable[[Tensor], Tensor]] = {"negative": _negative, "outline": _outline, "hatched": _hatched}
"""How a style draws over images [B, 3, H, W] in about [-1, 1]."""


def trained_style(plain: Subject, shown: Prompted, draw: Callable[[Tensor], Tensor], out: Path, steps: int) -> Path:
    """Train a LoRA of that style on the teacher of ``plain``, as a user would, and save it as diffusers does."""
    import torch
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from arcflow.architectures import flux
    from arcflow.architectures.packing import pack
    from export.quality.gate import unpacked
    from export.students.rollout import noise_of, rollout

    latent = plain.latent
    student, count, tokens = plain.whole.reference(), len(shown), shown.rows * shown.columns
    channels = latent.channels * latent.patch**2
    decode: Any = plain.network("vae_decoder").reference()
    vae: Any = AutoencoderKL.from_pretrained(plain.base / "vae", local_files_only=True)
    targets = []
    with torch.no_grad():
        for copy in range(IMAGES):
            noise = torch.stack([noise_of(2_000_000 + copy * count + i, tokens, channels) for i in range(count)])
            ends = rollout(student, noise, shown.ports(slice(0, count)), plain.sigmas())
            images = draw(decode(latents=unpacked(ends, latent, shown.rows, shown.columns))[0].clamp(-1, 1))
            scaled = (vae.encode(images).latent_dist.mean - latent.shift_factor[0]) * latent.scaling_factor[0]
            targets.append(pack(scaled))
    data = torch.stack(targets)
    teacher: Any = FluxTransformer2DModel.from_pretrained(plain.base / "transformer", local_files_only=True)
    teacher.requires_grad_(False)
    torch.manual_seed(0)
    teacher.add_adapter(
        LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            target_modules=list(_TARGETS),
            init_lora_weights="gaussian",
            exclude_modules=r"proj_out",
        )
    )
    trained = [parameter for parameter in teacher.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, RATE)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        index = torch.randint(count, (BATCH,), generator=generator)
        x0 = data[torch.randint(IMAGES, (BATCH,), generator=generator), index]
        sigma = torch.sigmoid(torch.randn(BATCH, generator=generator))
        noise = torch.randn(x0.shape, generator=generator)
        x = (1 - sigma[:, None, None]) * x0 + sigma[:, None, None] * noise
        condition = flux.Condition(
            shown.encodings["pooled_projections"][index], shown.encodings["encoder_hidden_states"][index],
            torch.full((BATCH,), shown.guidance), flux.image_ids(shown.rows, shown.columns),
            torch.zeros(shown.encodings["encoder_hidden_states"].shape[1], 3),
        )  # fmt: skip
        loss = (flux.evaluate(teacher, x, sigma, condition) - (noise - x0)).square().mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 100 == 0 or step == steps - 1:
            sys.stderr.write(f"{out.stem} {step}: {float(loss.detach()):.4f}\n")
    state = get_peft_model_state_dict(teacher)
    FluxPipeline.save_lora_weights(out.parent, transformer_lora_layers=state, weight_name=out.name)
    return out


def random_style(subject: Subject, out: Path, strength: float = 0.2) -> Path:
    """Random factors for every quantised layer, whose product has ``strength`` times the weight's norm."""
    import torch
    from safetensors.torch import save_file

    from export.fp8.policy import layer_of, select_layers

    weights, pairs = subject.student.weights, dict[str, Any]()
    generator = torch.Generator().manual_seed(3)
    for name in select_layers(list(weights), subject.whole.fp8_layers):
        weight = weights.read(name).float()
        a = torch.randn(RANK, weight.shape[1], generator=generator)
        b = torch.randn(weight.shape[0], RANK, generator=generator)
        b *= strength * weight.norm() / (b @ a).norm()
        pairs |= {f"transformer.{layer_of(name)}.lora_{side}.weight": value for side, value in (("A", a), ("B", b))}
    save_file(pairs, out)
    return out
