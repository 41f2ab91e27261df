"""Small pipelines of both architectures with an adapter each, and how an image of a student is made without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from arcflow.adapter import merge_into, read_adapter
from arcflow.pipelines.noise import image_noise
from arcflow.sampling import sample_student
from arcflow.students import architecture_of_pipeline, build_student
from tests.export.pipelines import Sources, small_flux, small_qwen

PROMPT, SIDE, TOKENS = "a dark bag on the table", 64, 16
MAKERS: dict[str, Callable[..., Sources]] = {"flux": small_flux, "qwen": small_qwen}


@pytest.fixture(scope="session", params=MAKERS)
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return small_flux(tmp_path_factory.mktemp("only-flux"))


def opened(folder: object, **options: Any) -> Any:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise_of(pipe: Any, seed: int = 7) -> torch.Tensor:
    side = SIDE // (2 * pipe.vae_scale_factor)
    return image_noise(seed, side * side, pipe.transformer.config.in_channels)


def image_of(pipe: Any, **options: Any) -> NDArray[np.float32]:
    """float32 [H, W, 3] in [0, 1] of one noise."""
    size = {"height": SIDE, "width": SIDE, "max_sequence_length": TOKENS, "output_type": "np"}
    image: NDArray[np.float32] = pipe(PROMPT, **{"latents": noise_of(pipe), **size, **options}).images[0]
    return image


def own_image(folders: Sources, nfe: int | None = None, loras: Callable[[Any], None] | None = None) -> Any:
    """The same image by the project's own sampling: merged student, ``sample_student``, no pipeline's loop.

    loras: changes the merged weights (a state dict) first.
    """
    pipe = opened(folders.base)
    family, adapter = architecture_of_pipeline(type(pipe).__name__), read_adapter(folders.adapter)
    policy, teacher = adapter.config.policy, pipe.transformer
    student = build_student(dict(teacher.config), adapter.config.modes, family.NAME)
    merge_into(student, teacher.state_dict(), adapter)
    if loras is not None:
        loras(student.state_dict())
    side = SIDE // (2 * pipe.vae_scale_factor)
    with torch.no_grad():
        condition = family.encode(pipe, PROMPT, TOKENS, policy.guidance, side, side)
        tokens, _ = sample_student(
            family,
            student.eval(),
            noise_of(pipe),
            condition,
            nfe or policy.nfe,
            policy.shift,
            policy.final_step_ratio,
            trained=policy.conditioning_dtype,
        )
        decoded = family.decode(pipe.vae, family.unpack(tokens, side, side))
    return (decoded[0].permute(1, 2, 0).float().numpy() / 2 + 0.5).clip(0, 1)
