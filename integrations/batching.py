"""Requests of several callers, generated together where they agree in size, evaluations and partial images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foundation.errors import ArcFlowError
from runtime.image import encode_png
from runtime.request import check_request
from runtime.result import settings_of

if TYPE_CHECKING:
    from engines.schema import Manifest
    from runtime.pipeline import Pipeline
    from runtime.result import Generation, Pixels, Preview, Step


@dataclass(frozen=True)
class Wanted:
    """What one caller asks for: an image of ``prompt`` from each of ``seeds`` (1 or more, 0 .. 2^64 - 1).

    width, height: pixels. nfe: network evaluations. previews: frames between noise and image.
    """

    prompt: str
    seeds: tuple[int, ...]
    width: int
    height: int
    nfe: int
    previews: int = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """What requests of one batch share."""
        return self.width, self.height, self.nfe, self.previews

    def settings(self, manifest: Manifest) -> tuple[dict[str, Any], ...]:
        """What each image is made of and how, known before any is made. Raises RequestError."""
        request = check_request(
            manifest,
            self.prompt,
            seed=self.seeds,
            nfe=self.nfe,
            num_images=len(self.seeds),
            width=self.width,
            height=self.height,
            previews=self.previews,
        )
        settings = settings_of(manifest, request)
        return tuple(settings.of_image(j) for j in range(request.total))


@dataclass(frozen=True)
class Made:
    """The images of one request. settings: of each image, as its PNG says them. seconds: of the whole batch.

    batch: images that were generated together.
    """

    images: tuple[Pixels, ...]
    settings: tuple[dict[str, Any], ...]
    seconds: float
    batch: int

    def png(self, index: int) -> bytes:
        """The file that ``python -m runtime.generate`` writes for that prompt and seed."""
        return encode_png(self.images[index], {**self.settings[index], "scale": 1})


@dataclass
class Job:
    """A request on its way. The callbacks are called in the thread of :func:`work`.

    gone: whether nobody waits for it any more. done: called once with what became of it; not called where it is gone.
    on_preview: called with the position of the image among the seeds, and its frame.
    """

    wanted: Wanted
    done: Callable[[Made | ArcFlowError], None]
    gone: Callable[[], bool] = lambda: False
    on_preview: Callable[[int, Preview], None] | None = None
    told: int = 0
    """Frames that the caller has; another attempt, here or elsewhere, does not send them again."""


class _AllGoneError(Exception):
    """Nobody waits for the batch."""


def work(pipeline: Pipeline, jobs: Sequence[Job]) -> None:
    """Generate for all jobs, and tell each. Jobs that fail together are tried again each by itself.

    A batch that nobody waits for any more ends after the evaluation that it is in.
    """
    for batch in batches(jobs, pipeline.manifest.limits.batch.max):
        waiting = [job for job in batch if not job.gone()]
        try:
            _together(pipeline, waiting)
        except ArcFlowError as error:
            if len(waiting) == 1:
                waiting[0].done(error)
                continue
            for job in waiting:
                work(pipeline, [job])


def batches(jobs: Sequence[Job], most: int) -> Iterator[list[Job]]:
    """Jobs that share a shape, in the order of arrival, together up to ``most`` images; a larger job is alone."""
    shapes: dict[tuple[int, ...], list[Job]] = {}
    for job in jobs:
        shapes.setdefault(job.wanted.shape, []).append(job)
    for alike in shapes.values():
        batch: list[Job] = []
        for job in alike:
            if batch and sum(len(one.wanted.seeds) for one in [*batch, job]) > most:
                yield batch
                batch = []
            batch.append(job)
        yield batch


def _together(pipeline: Pipeline, jobs: Sequence[Job]) -> None:
    if not jobs:
        return
    first, places = jobs[0].wanted, [(job, j) for job in jobs for j in range(len(job.wanted.seeds))]

    def on_step(_: Step) -> None:
        if all(job.gone() for job in jobs):
            raise _AllGoneError

    sent = {id(job): 0 for job in jobs}

    def on_preview(image: int, preview: Preview) -> None:
        job, place = places[image]
        sent[id(job)] += 1
        if job.on_preview is not None and sent[id(job)] > job.told and not job.gone():
            job.told += 1
            job.on_preview(place, preview)

    try:
        generation = pipeline.generate(
            [job.wanted.prompt for job, _ in places],
            seed=[job.wanted.seeds[j] for job, j in places],
            width=first.width,
            height=first.height,
            nfe=first.nfe,
            previews=first.previews,
            on_step=on_step,
            on_preview=on_preview if first.previews else None,
        )
    except _AllGoneError:
        return
    begin = 0
    for job in jobs:
        end = begin + len(job.wanted.seeds)
        if not job.gone():
            job.done(_part(generation, range(begin, end)))
        begin = end


def _part(generation: Generation, places: range) -> Made:
    return Made(
        images=tuple(generation.images[j] for j in places),
        settings=tuple(generation.settings.of_image(j) for j in places),
        seconds=sum(generation.timings.values()),
        batch=len(generation.images),
    )
