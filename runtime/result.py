"""What a generation hands back: pictures, latents, previews, and how they were made and how long it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.timing import Span

Picture = NDArray[np.uint8]
"""[height, width, 3], RGB."""


@dataclass(frozen=True)
class Settings:
    """All that determines a picture: what it is made of and how. ``bundle`` is the digest of the bundle's manifest."""

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
        """The settings of one picture, ready for JSON: its own ``prompt`` and ``seed`` among them."""
        return {
            "prompt": self.prompts[index],
            "seed": self.seeds[index],
            "model": self.model,
            "precision": self.precision,
            "target": self.target,
            "bundle": self.bundle,
            "nfe": self.nfe,
            "sigmas": list(self.sigmas),
            "guidance": self.guidance,
            "width": self.width,
            "height": self.height,
        }


@dataclass(frozen=True)
class Preview:
    """The picture on its way: what the VAE makes of the state at noise level ``sigma``."""

    sigma: float
    image: Picture


@dataclass(frozen=True)
class Step:
    """One network evaluation is done; given to the ``on_step`` callback.

    index, total: the evaluation (from 0) among those of the whole request (evaluations times batches).
    first_image: position of the batch's first picture in the request. sigma_from, sigma_to: the segment.
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


@dataclass(frozen=True)
class Generation:
    """The result of one request, prompt by prompt (``num_images`` of each).

    images: uint8 [height, width, 3] each. latents: float32 [N, C, H, W], normalised (before the VAE's scale and shift).
    previews: for each image its frames, noisiest first. settings: prompts and seeds by image, and all they share.
    timings: seconds by stage. warnings: sentences for the user (a prompt that was cut). spans: each passage through a
    stage, in order, in seconds since the call.
    """

    images: tuple[Picture, ...]
    latents: NDArray[np.float32]
    previews: tuple[tuple[Preview, ...], ...]
    settings: Settings
    timings: Mapping[str, float]
    warnings: tuple[str, ...]
    spans: tuple[Span, ...] = ()
