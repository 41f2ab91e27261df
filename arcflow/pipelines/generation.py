"""Images of a student by diffusers' own pipeline, from ArcFlow's noise: opened once, then one image a call."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from arcflow.pipelines.loading import load_student
from arcflow.pipelines.noise import image_noise
from arcflow.sources.base import Base
from arcflow.sources.pipeline import open_pipeline
from arcflow.students import Coverage
from foundation.files import atomic_file

if TYPE_CHECKING:
    from PIL.Image import Image

SETTINGS = "arcflow"
"""Name of a PNG's text that says what the image was made with."""


@dataclass(frozen=True)
class Generator:
    """An opened student. settings: what all of its images are made with, as JSON has it."""

    pipe: Any
    device: torch.device
    dtype: torch.dtype
    width: int
    height: int
    grid: tuple[int, int]
    tokens: int
    options: dict[str, Any]
    settings: dict[str, Any]

    def image(self, prompt: str, seed: int) -> Image:
        """The image (RGB) of a prompt and a seed, 0 to 2^64 - 1. Raises PipelineError for another seed."""
        rows, columns = self.grid
        noise = image_noise(seed, rows * columns, self.pipe.transformer.config.in_channels)
        image: Image = self.pipe(
            prompt,
            width=self.width,
            height=self.height,
            latents=noise.to(self.device, self.dtype),
            max_sequence_length=self.tokens,
            **self.options,
        ).images[0]
        return image


def open_generator(
    base: Base,
    adapter: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    size: tuple[int, int],
    tokens: int,
    coverage: Coverage = "whole",
    nfe: int | None = None,
    guidance: float | None = None,
    offload: bool = False,
) -> Generator:
    """Open a base's pipeline with the student of an adapter in it.

    size: (width, height) in pixels; tokens: the longest prompt; nfe, guidance: None for the adapter's; offload:
    networks are on the device one at a time. Raises BackboneError, AdapterError, PipelineError.
    """
    grid = base.grid(*size)  # What would fail after the base is open fails before it.
    pipe = open_pipeline(base.folder, dtype)
    options = load_student(pipe, adapter, coverage)
    if nfe is not None:
        options["num_inference_steps"] = nfe
    if guidance is not None:
        options["guidance_scale"] = guidance
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    width, height = size
    settings = {"width": width, "height": height, "base": str(base.folder), "adapter": str(adapter)}
    settings |= {"dtype": str(dtype).removeprefix("torch."), **options}
    return Generator(pipe, device, dtype, width, height, grid, tokens, options, settings)


def save_image(image: Image, settings: dict[str, Any], path: Path) -> None:
    """Write a PNG that says what it was made with, whole or not at all. Raises ArcFlowError."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text(SETTINGS, json.dumps(settings, sort_keys=True))
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=text)


def settings_of(path: Path) -> object:
    """What an image that :func:`save_image` wrote says that it was made with; None where it says nothing."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return json.loads(image.info[SETTINGS])
    except (OSError, KeyError, ValueError, TypeError):
        return None
