"""A pipeline on the GPU beside the CPU's: the same images, and how long they take."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from gpu.records import Emit

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline
    from runtime.result import Generation

PROMPTS = ("a smiling face with sunglasses", "a photo of a pineapple")
SEED = 7


def compare(emit: Emit, what: str, pipeline: Pipeline, reference: Pipeline, limit: float) -> None:
    """Two prompts, two images each, and other sizes: relative error of the latents, greatest difference of a byte.

    limit: what the error may be at most. The images differ by rounding where the latents do.
    """
    worst, bytes_off, cases = 0.0, 0, []
    for options in ({"seed": SEED, "num_images": 2}, {"seed": SEED + 1, "nfe": 4}, {"seed": SEED, "nfe": 1}):
        ours, theirs = (each.generate(PROMPTS, **options) for each in (pipeline, reference))  # type: ignore[arg-type]
        error = float(np.linalg.norm(ours.latents - theirs.latents) / np.linalg.norm(theirs.latents))
        again = pipeline.generate(PROMPTS, **options)  # type: ignore[arg-type]
        cases.append({"options": str(options), "error": error, "same again": _equal(ours, again)})
        worst = max(worst, error if np.isfinite(error) else np.inf)
        for a, b in zip(ours.images, theirs.images, strict=True):
            bytes_off = max(bytes_off, int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max()))
    steady = all(case["same again"] for case in cases)
    emit(
        f"{what}: against the CPU",
        f"latents differ by {worst:.1e}, images by {bytes_off} of 255 at most, "
        + ("the same when repeated" if steady else "NOT the same when repeated"),
        worst < limit and steady,
        check=True,
        error=worst,
        limit=limit,
        greatest_byte=bytes_off,
        cases=cases,
        backend=pipeline.backend,
    )


def measure(emit: Emit, what: str, pipeline: Pipeline, rounds: int) -> None:
    """Time of an image whose prompt was seen before, by stage, after a warm-up."""
    from runtime.bench import measure

    found = measure.measure(lambda seed: pipeline.generate(PROMPTS[0], seed=seed), rounds, warm_up=5)
    emit(
        f"{what}: time",
        f"{found.total.median_s * 1e3:.2f} ms an image (p99 {found.total.p99_s * 1e3:.2f})",
        total=asdict(found.total),
        stages={name: asdict(stage) for name, stage in found.stages.items()},
        idle=asdict(found.idle) if found.idle else None,
        memory=pipeline.memory(),
        backend=pipeline.backend,
    )


def _equal(one: Generation, other: Generation) -> bool:
    return bool(np.array_equal(one.latents, other.latents)) and all(
        np.array_equal(a, b) for a, b in zip(one.images, other.images, strict=True)
    )
