"""What a request becomes, from whichever replica has room; from another one where that dies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from integrations.ray_serve.errors import ApiError, bad
from integrations.ray_serve.replica import Failure, Frame, Images

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from integrations.batching import Wanted
    from integrations.ray_serve.files import Form

_FIRST_PAUSE = 0.1
"""Seconds before a request is given to a second replica; twice as many before each further one."""

_log = logging.getLogger("ray.serve")


async def ask(
    replicas: DeploymentHandle, wanted: Wanted, form: Form, seconds: float, retries: int
) -> AsyncGenerator[Frame | Images, None]:
    """The partial images, each once and in order, then the images. Raises ApiError.

    replicas: a handle that streams. seconds: that there are for it. retries: how often it is given to another replica;
    the same seeds give the same frames, so that one tells those that are missing. Closed, it cancels the work.
    """
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

    deadline, sent = time.monotonic() + seconds, 0
    for attempt in range(retries + 1):
        events = replicas.generate.remote(wanted, form, sent)
        running = True
        try:
            while True:
                async with asyncio.timeout(deadline - time.monotonic()):
                    event: Frame | Images | Failure = await anext(events)
                running = isinstance(event, Frame)
                if isinstance(event, Failure):
                    raise _failed(event)
                yield event
                if not running:
                    return
                sent += 1
        except TimeoutError as error:
            message = "the request was not done within its timeout"
            raise ApiError(504, message, code="deadline_exceeded", kind="server_error") from error
        except BackPressureError as error:
            running = False
            message = "the queue is full; try again later"
            raise ApiError(429, message, code="queue_full", kind="rate_limit_error", retry_after=1) from error
        except (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError) as error:
            running = False
            _log.warning("attempt %d lost its replica: %s", attempt + 1, type(error).__name__)
        finally:
            if running:
                events.cancel()
        if attempt < retries:
            await asyncio.sleep(_FIRST_PAUSE * 2**attempt)
    message = f"{retries + 1} replicas died over this request; try again later"
    raise ApiError(503, message, code="replica_lost", kind="server_error", retry_after=5)


def _failed(failure: Failure) -> ApiError:
    if failure.invalid:
        return bad(failure.message)
    message = f"the image could not be made: {failure.message}"
    return ApiError(500, message, code="generation_failed", kind="server_error")
