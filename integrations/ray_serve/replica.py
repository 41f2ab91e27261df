"""A replica: one loaded bundle, one thread that generates, requests joined into batches."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foundation.errors import ArcFlowError
from integrations.batching import Job, Made, Wanted, work
from integrations.ray_serve.files import Form, encode
from runtime.errors import RequestError
from runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from engines.schema import Manifest
    from integrations.ray_serve.options import Options
    from runtime.result import Preview


@dataclass(frozen=True)
class Described:
    """What a replica serves. loaded: seconds since 1970."""

    manifest: Manifest
    backend: str
    loaded: int


@dataclass(frozen=True)
class Frame:
    """A partial image. index: from 0, noisiest first. sigma: its noise level."""

    index: int
    sigma: float
    file: bytes


@dataclass(frozen=True)
class Images:
    """What a request became. files: one a seed. generate, encode: seconds. batch: images generated together."""

    files: tuple[bytes, ...]
    generate: float
    encode: float
    batch: int
    process: int


@dataclass(frozen=True)
class Failure:
    """Why there are no images. invalid: it is the request's own fault."""

    message: str
    invalid: bool


class Replica:
    """What Ray Serve runs once a replica, with the GPU that Ray gave to it."""

    def __init__(self, options: Options) -> None:
        """Load the bundle and generate once at its usual size. Raises ArcFlowError."""
        from ray import serve

        self._pipeline = Pipeline.open(
            options.model,
            precision=options.precision,
            target=options.target,
            threads=options.threads,
            host=options.host,
        )
        self._pipeline.generate("warm up")
        most = min(options.max_batch, self._pipeline.manifest.limits.batch.max)
        self._described = Described(self._pipeline.manifest, self._pipeline.backend, int(time.time()))

        async def run(jobs: list[Job]) -> list[None]:
            await asyncio.to_thread(self._work, jobs)
            return [None] * len(jobs)

        joined = serve.batch(max_batch_size=most, batch_wait_timeout_s=options.batch_wait_ms / 1e3)
        self._run = joined(run)

    async def describe(self) -> Described:
        """What is served."""
        return self._described

    async def generate(
        self, wanted: Wanted, form: Form, has: int = 0
    ) -> AsyncGenerator[Frame | Images | Failure, None]:
        """The partial images of a request as they are made, less those that the caller has; then its images.

        wanted: of one seed where it has partial images. Cancelled, it leaves its batch, which ends once nobody in it is
        waited for.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[int, Preview] | Made | BaseException] = asyncio.Queue()
        gone = False

        def tell(event: tuple[int, Preview] | Made | BaseException) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(wanted, tell, lambda: gone, lambda _, preview: tell((job.told - 1, preview)), told=has)
        # Each is answered when its own images are there, not when all that Serve handed over together are.
        turn = asyncio.ensure_future(self._run(job))
        turn.add_done_callback(lambda turn: events.put_nowait(_unanswered(turn)))
        try:
            while not isinstance(event := await events.get(), BaseException):
                # In a thread of its own: the next batch does not wait for files.
                if isinstance(event, Made):
                    yield await asyncio.to_thread(_files, event, form)
                    return
                yield await asyncio.to_thread(self._frame, wanted, *event, form)
            if not isinstance(event, ArcFlowError):
                raise event
            yield Failure(str(event), invalid=isinstance(event, RequestError))
        finally:
            gone = True

    def _frame(self, wanted: Wanted, index: int, preview: Preview, form: Form) -> Frame:
        (settings,) = wanted.settings(self._pipeline.manifest)
        return Frame(index, preview.sigma, encode(preview.image, {**settings, "sigma": preview.sigma}, form))

    def _work(self, jobs: Sequence[Job]) -> None:
        work(self._pipeline, jobs)


def _files(made: Made, form: Form) -> Images:
    began = time.perf_counter()
    pairs = zip(made.images, made.settings, strict=True)
    files = tuple(encode(image, settings, form) for image, settings in pairs)
    return Images(files, made.seconds, time.perf_counter() - began, made.batch, os.getpid())


def _unanswered(turn: asyncio.Future[None]) -> BaseException:
    """Why a request whose turn is over has no answer: what was raised, or a bug."""
    if turn.cancelled():
        return asyncio.CancelledError()
    return turn.exception() or RuntimeError("the batch ended without an answer")
