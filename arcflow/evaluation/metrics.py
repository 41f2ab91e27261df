"""Figures of merit: closeness to the teacher's own endpoint, and what a small classifier sees in the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Figures:
    """One sampler's figures.

    rel_l2: mean over seeds of |x - reference| / |reference| in latents; frechet: Frechet distance of classifier
    features to those of real test images (lower is better; its bias depends on the number of images); psnr_db: mean
    over seeds of the image's PSNR against the reference's image, None for the reference itself; accuracy: share of
    images that the classifier takes for the prompt's class; diversity: mean feature distance between two images of
    one prompt.
    """

    rel_l2: float
    frechet: float
    psnr_db: float | None
    accuracy: float
    diversity: float


def relative_l2(x: Tensor, reference: Tensor) -> Tensor:
    """|x - reference| / |reference| per row, [B] (Euclidean norm over all other axes)."""
    error: Tensor = torch.linalg.vector_norm((x - reference).flatten(1), dim=1)
    scale: Tensor = torch.linalg.vector_norm(reference.flatten(1), dim=1)
    return error / scale


def psnr_db(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in dB, [B]; images in [-1, 1] (peak to peak 2)."""
    mse = (images - reference).square().flatten(1).mean(dim=1)
    return 10.0 * torch.log10(4.0 / mse.clamp(min=1e-12))


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Frechet distance between two Gaussians fitted to feature sets [N, D] and [M, D] (Heusel et al., 2017)."""
    from scipy.linalg import sqrtm

    a, b = features.double().numpy(), reference.double().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(sqrtm(cov_a @ cov_b))
    gap = a.mean(axis=0) - b.mean(axis=0)
    return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2.0 * np.trace(root))


def pairwise_diversity(features: Tensor, groups: Tensor) -> float:
    """Mean Euclidean distance between two features [N, D] of the same group [N]. 0 where no group has two."""
    distances = torch.cdist(features, features)
    pairs = (groups[:, None] == groups[None]) & ~torch.eye(len(groups), dtype=torch.bool)
    return float(distances[pairs].mean()) if bool(pairs.any()) else 0.0


def paired_gain(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """How much lower our errors [N] are than theirs [N], seed by seed: relative mean, standard error, share won."""
    gain = (theirs - ours).double()
    mean, error = float(gain.mean()), float(gain.std() / len(gain) ** 0.5)
    return {
        "mean": mean,
        "standard_error": error,
        "relative": mean / float(theirs.double().mean()),
        "won": float((gain > 0).double().mean()),
    }
