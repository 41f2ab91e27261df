"""The settings of a request: all that determines its images, whichever host makes them."""

from __future__ import annotations

from engines.manifest import Manifest
from runtime import noise, solver
from runtime.request import Request
from runtime.result import Settings


def settings_of(manifest: Manifest, request: Request) -> Settings:
    """What the images of ``request`` are made of and how, with prompt and seed of each."""
    schedule = manifest.schedule
    return Settings(
        model=manifest.model,
        precision=manifest.precision,
        target=manifest.target,
        bundle=manifest.digest,
        nfe=request.nfe,
        sigmas=solver.sigmas(request.nfe, schedule.shift, schedule.final_step_ratio),
        guidance=schedule.guidance,
        width=request.width,
        height=request.height,
        prompts=tuple(text for text in request.prompts for _ in range(request.num_images)),
        seeds=noise.image_seeds(request.seed, request.total),
    )
