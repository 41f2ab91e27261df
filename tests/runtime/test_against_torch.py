"""The committed default, from prompt and noise to image, against the same student in torch."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundation import noise
from runtime.pipeline import Pipeline
from tests.runtime.conftest import COMMITTED

MODEL = Path(__file__).parents[2] / "models" / "tiny"
PROMPTS = ["a smiling face with sunglasses", "picture of a pizza"]
SEED = 7


@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_latents_and_images_are_those_of_torch(nfe: int) -> None:
    pytest.importorskip("diffusers")
    pipeline = Pipeline.open(COMMITTED)
    made = pipeline.generate(PROMPTS, seed=SEED, nfe=nfe, width=64, height=64)
    latents, images = _torch(pipeline, nfe)
    error = np.linalg.norm(made.latents - latents) / np.linalg.norm(latents)
    assert error < 1e-4
    difference = np.stack(made.images).astype(int) - images.astype(int)
    assert abs(difference).max() <= 1


def _torch(pipeline: Pipeline, nfe: int) -> tuple[Any, Any]:
    """Latents [2, 16, 8, 8] and images [2, 64, 64, 3] by arcflow's solver and diffusers' parts."""
    import torch
    from diffusers import FluxPipeline

    from arcflow.adapter import merge_into, read_adapter
    from arcflow.architectures import flux
    from arcflow.field import displacement
    from arcflow.schedule import sigmas
    from arcflow.students import build_student

    teacher = FluxPipeline.from_pretrained(MODEL / "teacher", local_files_only=True, dtype=torch.float32)
    adapter = read_adapter(MODEL / "adapter")
    backbone = teacher.transformer
    student = merge_into(build_student(dict(backbone.config), adapter.config.modes), backbone.state_dict(), adapter)
    for parameter in student.parameters():
        if parameter.dim() > 1:  # The bundle has matrices in float16. The teacher's were published in bfloat16.
            parameter.data = parameter.data.half().float()
    schedule = pipeline.manifest.schedule
    levels = sigmas(nfe, schedule.shift, schedule.final_step_ratio)
    x = torch.from_numpy(np.stack([noise.normal(SEED + j, 16, 64) for j in range(2)]))
    with torch.no_grad():
        sequence, pooled, txt_ids = teacher.encode_prompt(PROMPTS, None, max_sequence_length=12)
        guidance = torch.full((2,), schedule.guidance)
        condition = flux.Condition(pooled, sequence, guidance, flux.image_ids(4, 4), txt_ids)
        for a, b in itertools.pairwise(levels):
            field = flux.evaluate(student.eval(), x, torch.full((2,), a), condition, schedule.conditioning_dtype)
            x = x + displacement(field, *(torch.tensor(s) for s in (a, a, b)))
        z = flux.unpack(x, 4, 4)
        decoded = teacher.vae.decode(z / teacher.vae.config.scaling_factor + teacher.vae.config.shift_factor).sample
    pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return z.numpy(), pixels.numpy()
