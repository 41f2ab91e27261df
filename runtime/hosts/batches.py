"""How a request is worked off: prompts, then batch by batch the evaluations with previews and steps, then the result.

The hosts in Python share this; each brings its own prompts-to-conditions and its own :class:`Batch`.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime import solver
from runtime.result import Generation, OnPreview, OnStep, Pixels, Preview, Settings, Step
from runtime.timing import Stopwatch

if TYPE_CHECKING:
    from engines.schema import Manifest
    from runtime.architectures.base import Architecture, Tokens
    from runtime.request import Request
    from runtime.text import PromptTokenizer, TokenIds

STAGES = ("tokenize", "text", "noise", "backbone", "solver", "vae")
"""The stages that a host times, in the order of a run."""

NOT_FINITE = "the networks gave values that are not finite; check it: python -m engines.verify"


@dataclass(frozen=True)
class Prompts:
    """The prompts of a request, each different one once.

    ids: by tokenizer, a row a text. rows: of each image its row. warnings: a sentence for each prompt that was cut.
    """

    texts: tuple[str, ...]
    ids: Mapping[str, TokenIds]
    rows: tuple[int, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """What a batch became. latents: float32 [B, C, H, W], normalised; previews: for each image its frames."""

    images: tuple[Pixels, ...]
    latents: NDArray[np.float32]
    previews: tuple[tuple[Preview, ...], ...]


class Batch(ABC):
    """A batch of images on a host, ready for its first evaluation.

    settings: of the whole request. members: the positions in it of the batch's images.
    """

    def __init__(self, architecture: Architecture, settings: Settings, members: range) -> None:
        self.architecture = architecture
        self.settings = settings
        self.members = members
        self.grid = architecture.grid(settings.width, settings.height)

    @abstractmethod
    def evaluate(self, index: int) -> None:
        """The field of segment ``index``, by an evaluation of the backbone."""

    @abstractmethod
    def advance(self, index: int) -> None:
        """The state goes to the end of the evaluated segment."""

    @abstractmethod
    def preview(self, index: int, sigma: float) -> Sequence[Pixels]:
        """The images of the state at ``sigma`` inside the evaluated segment."""

    @abstractmethod
    def state(self) -> Tokens:
        """The present state."""

    @abstractmethod
    def finish(self) -> tuple[Tokens, Sequence[Pixels]]:
        """The state and its images. Raises BackendError where a value is not finite."""

    def run(self) -> tuple[Tokens, Sequence[Pixels]]:
        """All segments, and :meth:`finish`."""
        for index in range(self.settings.nfe):
            self.evaluate(index)
            self.advance(index)
        return self.finish()

    def make(self, request: Request, on_step: OnStep | None, on_preview: OnPreview | None) -> Made:
        """Every evaluation, with the previews and steps that were asked for."""
        schedule, most = self.architecture.manifest.schedule, self.architecture.manifest.limits.batch.max
        levels = solver.preview_sigmas(request.previews, schedule.shift)
        frames: list[tuple[float, Sequence[Pixels]]] = []
        if on_step is None and not levels:
            x, images = self.run()
        else:
            for index, (sigma_src, sigma_end) in enumerate(itertools.pairwise(self.settings.sigmas)):
                self.evaluate(index)
                for sigma in (level for level in levels if sigma_end <= level < sigma_src):
                    frames.append((sigma, pixels := self.preview(index, sigma)))
                    if on_preview is not None:
                        for member, image in zip(self.members, pixels, strict=True):
                            on_preview(member, Preview(sigma, image))
                self.advance(index)
                if on_step is not None:
                    step = Step(
                        index=self.members.start // most * self.settings.nfe + index,
                        total=-(-request.total // most) * self.settings.nfe,
                        first_image=self.members.start,
                        sigma_from=sigma_src,
                        sigma_to=sigma_end,
                        latents=self.architecture.latents(self.state(), self.grid),
                    )
                    on_step(step)
            x, images = self.finish()
        previews = tuple(tuple(Preview(sigma, made[j]) for sigma, made in frames) for j in range(len(self.members)))
        return Made(tuple(images), self.architecture.latents(x, self.grid), previews)


def tokenize(tokenizers: Mapping[str, PromptTokenizer], request: Request, clock: Stopwatch) -> Prompts:
    """The prompts of a request as ids, equal ones once."""
    texts = tuple(dict.fromkeys(request.prompts))
    with clock.stage("tokenize"):
        ids = {name: tokenizer(texts) for name, tokenizer in tokenizers.items()}
    return Prompts(
        texts,
        ids,
        rows=tuple(texts.index(text) for text in request.prompts for _ in range(request.num_images)),
        warnings=tuple(str(truncation) for tokens in ids.values() for truncation in tokens.truncations),
    )


def members_of(manifest: Manifest, request: Request) -> Iterator[range]:
    """Positions of the images that go through the networks together."""
    most = manifest.limits.batch.max
    for first in range(0, request.total, most):
        yield range(first, min(first + most, request.total))


def collect(made: Sequence[Made], settings: Settings, clock: Stopwatch, warnings: tuple[str, ...]) -> Generation:
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
