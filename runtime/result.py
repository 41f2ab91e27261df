"""What a generation hands back: images, latents, previews, and how they were made and how long it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime import solver
from runtime.png import Pixels as Pixels
from runtime.timing import Span

if TYPE_CHECKING:
    from PIL import Image

    from engines.schema import Manifest
    from runtime.request import Request


@dataclass(frozen=True)
class Settings:
    """All that determines an image: what it is made of and how. ``bundle`` is the digest of the bundle's manifest."""

    model: str
    precision: str
    target: str
    bundle: str
    nfe: int
    sigmas: tuple[float, ...]
    guidance: float
    width: int
    height: int
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def of_image(self, index: int) -> dict[str, Any]:
        """The settings of one image, ready for JSON: its own ``prompt`` and ``seed`` among them."""
        own = {"prompt": self.prompts[index], "seed": self.seeds[index]}
        shared = {name: value for name, value in vars(self).items() if name not in ("prompts", "seeds")}
        return {**own, **shared, "sigmas": list(self.sigmas)}


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
        seeds=request.seeds,
    )


@dataclass(frozen=True)
class Preview:
    """The image on its way: what the VAE makes of the state at noise level ``sigma``."""

    sigma: float
    image: Pixels


@dataclass(frozen=True)
class Step:
    """One network evaluation is done; given to the ``on_step`` callback.

    index, total: the evaluation (from 0) among those of the whole request (evaluations times batches).
    first_image: position of the batch's first image in the request. sigma_from, sigma_to: the segment.
    latents: float32 [B, C, H, W], the state at ``sigma_to`` (normalised; a copy); None from the native host, which
    leaves it where it is computed.
    """

    index: int
    total: int
    first_image: int
    sigma_from: float
    sigma_to: float
    latents: NDArray[np.float32] | None


OnStep = Callable[[Step], None]

OnPreview = Callable[[int, Preview], None]
"""Called with the position of an image in the request, and its next frame."""


@dataclass(frozen=True)
class Generation:
    """The result of one request, prompt by prompt (``num_images`` of each).

    images: uint8 [height, width, 3] each. latents: float32 [N, C, H, W], normalised (before the VAE's scale and shift).
    previews: for each image its frames, noisiest first. settings: prompts and seeds by image, and all they share.
    timings: seconds by stage. warnings: sentences for the user (a prompt that was cut). spans: each passage through a
    stage, in order, in seconds since the call.
    """

    images: tuple[Pixels, ...]
    latents: NDArray[np.float32]
    previews: tuple[tuple[Preview, ...], ...]
    settings: Settings
    timings: Mapping[str, float]
    warnings: tuple[str, ...]
    spans: tuple[Span, ...] = ()

    def save(self, path: str | Path, *, scale: int = 1) -> tuple[Path, ...]:
        """Write every image, and the previews after each, as PNG files with their settings in text chunks.

        path: ends in .png; one image gets this name, several get NAME-00.png, NAME-01.png, ..., and previews
        NAME-preview-00.png, ... Folders are made. scale: every pixel is repeated scale x scale times, 1 .. 64.
        The files are those of ``python -m runtime.generate``, byte for byte. All are written, or none.
        Returns their paths. Raises RequestError (name, scale, a folder in the way), ArcFlowError (cannot write).
        """
        from runtime.image import check_name, check_targets, encode_png, enlarge, targets, write_files

        out = Path(path)
        check_name(out)
        contents: dict[Path, bytes] = {}
        for file, index, frame in targets(out, len(self.images), len(self.previews[0])):
            image, settings = self.images[index], self.settings.of_image(index)
            if frame is not None:
                preview = self.previews[index][frame]
                image, settings["sigma"] = preview.image, preview.sigma
            contents[file] = encode_png(enlarge(image, scale), {**settings, "scale": scale})
        check_targets(list(contents))
        write_files(contents)
        return tuple(contents)

    def pil(self) -> tuple[Image.Image, ...]:
        """The images as Pillow images in mode RGB, in the same order. Each has its own copy of the pixels."""
        from PIL import Image

        return tuple(Image.fromarray(image).copy() for image in self.images)
