"""Figures of a student and its teacher from the same noise: how near, how different among themselves, how long."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from arcflow.architectures.packing import unpack
from arcflow.evaluation.endpoints import Endpoint
from arcflow.evaluation.features import Features, cosine_distance
from arcflow.evaluation.metrics import paired_gain, psnr_db, relative_l2
from arcflow.evaluation.plots import pixels
from arcflow.evaluation.same_noise import STUDENT, TEACHER, Sampler, Wanted
from arcflow.evaluation.samplers import Advance
from arcflow.sources.pipeline import open_vae


@dataclass(frozen=True)
class Row:
    """A sampler's figures: means over all images, unless said otherwise.

    rel_l2: |x - reference| / |reference| of latents; psnr_db: of images; feature_distance: cosine distance of what a
    vision network sees, 0 to 2. These are None where there is nothing to compare with. diversity: distance of two
    images of one prompt, that of features where a network is given, else |x - y| / |reference| of latents; None with
    one seed. seconds: median of an image from noise to latents, without text encoders and VAE.
    """

    rel_l2: float | None
    psnr_db: float | None
    feature_distance: float | None
    diversity: float | None
    seconds: float


@dataclass(frozen=True)
class Measured:
    """figures: as JSON has them; first_images: the first image of each prompt, uint8 [H, W, 3], by sampler."""

    figures: dict[str, Any]
    first_images: dict[Sampler, list[NDArray[np.uint8]]]


def measure(
    wanted: Wanted, ends: Mapping[Sampler, list[Endpoint]], features: Features | None, advance: Advance
) -> Measured:
    """Decode and compare what :func:`arcflow.evaluation.same_noise.sample` gives. Raises BackboneError."""
    latents = {sampler: torch.stack([end.x for end in found]) for sampler, found in ends.items()}
    truth = latents[wanted.reference]
    looks = _look(wanted, latents, features, advance)
    figures: dict[str, Any] = {STUDENT: {}, TEACHER: {}}
    for sampler, look in looks.items():
        others = sampler != wanted.reference
        row = Row(
            rel_l2=float(relative_l2(latents[sampler], truth).mean()) if others else None,
            psnr_db=statistics.mean(look.psnr) if others else None,
            feature_distance=statistics.mean(look.distances) if others and look.distances else None,
            diversity=_diversity(wanted.seeds, look.features, latents[sampler], truth),
            seconds=statistics.median(end.seconds for end in ends[sampler]),
        )
        figures[sampler[0]][str(sampler[1])] = asdict(row)
    if len(wanted.cases) > 1:
        figures["gain_over_euler"] = {
            str(nfe): paired_gain(*(relative_l2(latents[kind, nfe], truth) for kind in (STUDENT, TEACHER)))
            for nfe in wanted.nfe
        }
    return Measured(figures, {sampler: look.first_images for sampler, look in looks.items()})


@dataclass(frozen=True)
class _Look:
    """What is seen of a sampler's images, each list by image; first_images: the first of each prompt."""

    psnr: list[float]
    distances: list[float]
    features: list[Tensor]
    first_images: list[NDArray[np.uint8]]


@torch.no_grad()
def _look(
    wanted: Wanted, latents: Mapping[Sampler, Tensor], features: Features | None, advance: Advance
) -> dict[Sampler, _Look]:
    """Decode all images, one at a time, and compare each with the reference's."""
    vae = open_vae(wanted.base.folder, wanted.dtype, wanted.device)
    looks = {sampler: _Look([], [], [], []) for sampler in latents}

    def decode(x: Tensor) -> Tensor:
        tokens = unpack(x[None], *wanted.grid).to(wanted.device, wanted.dtype)
        image: Tensor = wanted.base.architecture.decode(vae, tokens).float().clamp(-1, 1).cpu()
        return image

    for case in range(len(wanted.cases)):
        images = {sampler: decode(x[case]) for sampler, x in latents.items()}
        drawn = {sampler: pixels(image[0]) for sampler, image in images.items()}
        for sampler, image in images.items():
            looks[sampler].psnr.append(float(psnr_db(image, images[wanted.reference])))
            if case % wanted.seeds == 0:
                looks[sampler].first_images.append(drawn[sampler])
        if features is not None:
            seen = dict(zip(drawn, features([Image.fromarray(values) for values in drawn.values()]), strict=True))
            for sampler, vector in seen.items():
                looks[sampler].features.append(vector)
                looks[sampler].distances.append(_apart(vector, seen[wanted.reference]))
        advance("decoded", case + 1, len(wanted.cases))
    return looks


def _diversity(seeds: int, features: list[Tensor], latents: Tensor, reference: Tensor) -> float | None:
    """Mean distance of two images of one prompt; None where no prompt has two."""
    scale = float(reference.flatten(1).norm(dim=1).mean())
    found = []
    for first in range(0, len(latents), seeds):
        for a, b in combinations(range(first, first + seeds), 2):
            far = _apart(features[a], features[b]) if features else float((latents[a] - latents[b]).norm()) / scale
            found.append(far)
    return statistics.mean(found) if found else None


def _apart(a: Tensor, b: Tensor) -> float:
    return float(cosine_distance(a[None], b[None]))
