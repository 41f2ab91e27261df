"""A replica: one loaded bundle, one thread that generates, requests joined into batches."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foundation.errors import ArcFlowError
from integrations.batching import Job, Made, Wanted, work
from runtime.errors import RequestError
from runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from engines.schema import Manifest
    from integrations.ray_serve.options import Options


@dataclass(frozen=True)
class Described:
    """What a replica serves. loaded: seconds since 1970."""

    manifest: Manifest
    backend: str
    loaded: int


@dataclass(frozen=True)
class Images:
    """What a request became. files: PNG, one a seed. generate, encode: seconds. batch: images generated together."""

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

    async def generate(self, wanted: Wanted) -> Images | Failure:
        """The images of a request. Cancelled, it leaves its batch, which ends once nobody in it is waited for."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Images | Failure] = loop.create_future()
        gone = False

        def settle(result: Images | Failure | BaseException) -> None:
            if not answer.done():
                if isinstance(result, BaseException):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

        def done(made: Made | ArcFlowError) -> None:
            result: Images | Failure
            if isinstance(made, ArcFlowError):
                result = Failure(str(made), invalid=isinstance(made, RequestError))
            else:
                began = time.perf_counter()
                files = tuple(made.png(j) for j in range(len(made.images)))
                result = Images(files, made.seconds, time.perf_counter() - began, made.batch, os.getpid())
            loop.call_soon_threadsafe(settle, result)

        # Each is answered when its own images are there, not when all that Serve handed over together are.
        turn = asyncio.ensure_future(self._run(Job(wanted, done, gone=lambda: gone)))
        turn.add_done_callback(lambda turn: settle(_unanswered(turn)))
        try:
            return await answer
        finally:
            gone = True

    def _work(self, jobs: Sequence[Job]) -> None:
        work(self._pipeline, jobs)


def _unanswered(turn: asyncio.Future[None]) -> BaseException:
    """Why a request whose turn is over has no answer: what was raised, or a bug."""
    if turn.cancelled():
        return asyncio.CancelledError()
    return turn.exception() or RuntimeError("the batch ended without an answer")
