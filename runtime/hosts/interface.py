"""What a host gives to :class:`runtime.pipeline.Pipeline`, and what all hosts do alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime import solver
from runtime.result import Generation, OnStep, Picture, Preview, Settings, Step

if TYPE_CHECKING:
    from engines.manifest import Manifest
    from runtime.request import Request
    from runtime.text import PromptTokenizer
    from runtime.timing import Stopwatch

STAGES = ("tokenize", "text", "noise", "backbone", "solver", "vae")
"""The stages that a host times, in the order of a run."""

CLOSED = "the pipeline is closed: open it again"
NOT_FINITE = "the networks gave values that are not finite; check it: python -m engines.verify"


class Host(Protocol):
    """A loaded bundle. Safe to call from several threads."""

    @property
    def manifest(self) -> Manifest:
        """The bundle's."""
        ...

    @property
    def backend(self) -> str:
        """What runs the networks: "ONNX Runtime 1.32.0, CPU, 2 threads"; "" where that was not said."""
        ...

    @property
    def tokenizers(self) -> Mapping[str, PromptTokenizer]:
        """By the name of the encoder."""
        ...

    def generate(self, request: Request, settings: Settings, on_step: OnStep | None) -> Generation:
        """The images of a checked request. Raises BackendError."""
        ...

    def memory(self) -> Mapping[str, int]:
        """Bytes that the host knows that it holds, by kind; "weights" is one."""
        ...

    def close(self) -> None:
        """Give everything back. May be called twice."""
        ...


@dataclass(frozen=True)
class Batch:
    """What a batch became. latents: float32 [B, C, H, W], normalised; previews: for each image its frames."""

    images: tuple[Picture, ...]
    latents: NDArray[np.float32]
    previews: tuple[tuple[Preview, ...], ...]


Frames = Sequence[tuple[float, Sequence[Picture]]]
"""Previews of a batch: (noise level, the images there), noisiest first."""


def frames_by_image(frames: Frames, count: int) -> tuple[tuple[Preview, ...], ...]:
    """The previews of each of ``count`` images."""
    return tuple(tuple(Preview(sigma, pictures[row]) for sigma, pictures in frames) for row in range(count))


def batches(request: Request, most: int) -> Iterator[range]:
    """Positions of the images that go through the networks together, at most ``most``."""
    for first in range(0, request.total, most):
        yield range(first, min(first + most, request.total))


def preview_sigmas(manifest: Manifest, request: Request, sigma_src: float, sigma_end: float) -> list[float]:
    """Noise levels of the previews inside a segment."""
    levels = solver.preview_sigmas(request.previews, manifest.schedule.shift)
    return [sigma for sigma in levels if sigma_end <= sigma < sigma_src]


def step_of(
    manifest: Manifest, request: Request, settings: Settings, members: range, index: int, latents: NDArray[np.float32]
) -> Step:
    """Evaluation ``index`` of the images ``members`` is done; latents [B, C, H, W]: the state after it."""
    most = manifest.limits.batch.max
    return Step(
        index=members.start // most * settings.nfe + index,
        total=-(-request.total // most) * settings.nfe,
        first_image=members.start,
        sigma_from=settings.sigmas[index],
        sigma_to=settings.sigmas[index + 1],
        latents=latents,
    )


def collect(made: Sequence[Batch], settings: Settings, clock: Stopwatch, warnings: tuple[str, ...]) -> Generation:
    """The result of a request, from its batches."""
    return Generation(
        images=tuple(image for batch in made for image in batch.images),
        latents=np.concatenate([batch.latents for batch in made]),
        previews=tuple(frames for batch in made for frames in batch.previews),
        settings=settings,
        timings=dict(clock.seconds),
        warnings=warnings,
        spans=tuple(clock.spans),
    )


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of the files that hold the networks and their weights."""
    sizes = {entry.path: entry.size for entry in manifest.files}
    files = {path for spec in manifest.networks.values() for path in (spec.file, *spec.data)}
    return sum(sizes.get(path, 0) for path in files)
