"""The front: HTTP as ``arcflow-serve`` speaks it. It generates nothing, so it can ask again when a replica dies."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from integrations.batching import Wanted
from integrations.ray_serve import answers
from integrations.ray_serve.asking import ask
from integrations.ray_serve.errors import ApiError
from integrations.ray_serve.parsing import parse
from integrations.ray_serve.replica import Described, Frame, Images

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle
    from starlette.requests import Request
    from starlette.responses import Response

    from integrations.ray_serve.options import Options

GENERATIONS = "/v1/images/generations"
MODELS = "/v1/models"
MODEL = "/v1/models/{id}"
METHODS = {
    GENERATIONS: ("POST",),
    MODELS: ("GET", "HEAD"),
    MODEL: ("GET", "HEAD"),
    "/health": ("GET", "HEAD"),
    "/ready": ("GET", "HEAD"),
}
_MAX_REQUEST_ID = 128
_EXACT = 53
"""Bits of a seed that every JSON reader keeps exactly."""

_PATIENCE = 1.0
"""Seconds to wait for a first replica to say what it serves."""

_log = logging.getLogger("ray.serve")


class Front:
    """What Ray Serve runs behind its proxy."""

    def __init__(self, replicas: DeploymentHandle, options: Options) -> None:
        self._replicas = replicas
        self._streams = replicas.options(stream=True)
        self._options = options
        self._known: Described | None = None

    async def __call__(self, request: Request) -> Response:
        """The answer to one HTTP request."""
        from starlette.background import BackgroundTask
        from starlette.responses import JSONResponse, StreamingResponse

        began, status = time.monotonic(), 200
        identity = _identity(request.headers.get("x-request-id", ""))
        headers = {"x-request-id": identity}
        content: dict[str, Any] | AsyncGenerator[bytes, None]
        try:
            content = await self._route(request)
        except ApiError as error:
            content, status = error.body, error.status
            if status == 405:
                headers["Allow"] = ", ".join(METHODS[_route_of(request.url.path)])
            if error.retry_after:
                headers["Retry-After"] = str(error.retry_after)
        log = partial(_tell, identity, request.method, status, began)
        if isinstance(content, dict):
            log()
            return JSONResponse(content, status_code=status, headers=headers)
        headers |= answers.EVENTS
        return StreamingResponse(
            content, headers=headers, media_type="text/event-stream", background=BackgroundTask(log)
        )

    async def _route(self, request: Request) -> dict[str, Any] | AsyncGenerator[bytes, None]:
        path = request.url.path
        route = _route_of(path)
        if route not in METHODS:
            raise ApiError(404, f"there is nothing at this path; there are {', '.join(METHODS)}", code="not_found")
        if request.method not in METHODS[route]:
            message = "this path does not take this method; see the Allow header"
            raise ApiError(405, message, code="method_not_allowed")
        if route == "/health":
            return {"status": "ok"}
        if route == GENERATIONS:
            return await self._generate(request)
        described, names = await self._described(), self._options.names
        if route == "/ready":
            return {"status": "ready"}
        if route == MODELS:
            return answers.models(described, names)
        return answers.model(path.removeprefix(f"{MODELS}/"), described, names)

    async def _described(self) -> Described:
        """What the replicas serve. Raises ApiError while none is loaded."""
        if self._known is None:
            try:
                async with asyncio.timeout(_PATIENCE):
                    self._known = await self._replicas.describe.remote()
            except TimeoutError as error:
                message = "the model is being loaded; try again soon"
                raise ApiError(503, message, code="not_ready", kind="server_error", retry_after=1) from error
        return self._known

    async def _generate(self, request: Request) -> dict[str, Any] | AsyncGenerator[bytes, None]:
        """The images, or the events of a stream that has begun. Raises ApiError."""
        arrived = time.monotonic()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            message = "the body must be JSON, not compressed, with the header Content-Type: application/json"
            raise ApiError(415, message, code="unsupported_media_type")
        described = await self._described()
        parsed = parse(await self._body(request), described.manifest, self._options.timeout, self._options.names)
        first = secrets.randbits(_EXACT) if parsed.seed is None else parsed.seed
        # The seeds are settled here: a second replica makes the images that the first would have made.
        seeds = tuple((first + j) % (1 << 64) for j in range(parsed.n))
        wanted = Wanted(parsed.prompt, seeds, parsed.width, parsed.height, parsed.nfe, parsed.partial_images)
        left = arrived + parsed.timeout - time.monotonic()
        made = ask(self._streams, wanted, parsed.form, left, self._options.retries)
        # What goes wrong before there is anything to send has a status of its own.
        begin = await anext(made)
        if isinstance(begin, Images) and not parsed.stream:
            await made.aclose()
            return answers.images(described, parsed, seeds, begin, time.monotonic() - arrived)

        async def events() -> AsyncGenerator[bytes, None]:
            event: Frame | Images | None = begin
            async with aclosing(made):
                try:
                    while event is not None:
                        if isinstance(event, Frame):
                            yield answers.partial(parsed, seeds[0], event)
                        else:
                            yield answers.completed(described, parsed, seeds[0], event, time.monotonic() - arrived)
                        event = await anext(made, None)
                except ApiError as error:
                    yield answers.failed(error)

        return events()

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._options.max_body:
                raise ApiError(413, "the body is larger than this server takes (max_body)", code="too_large")
        return bytes(body)


def _route_of(path: str) -> str:
    """The path, but for the models' names in it."""
    return MODEL if path.startswith(f"{MODELS}/") and path != f"{MODELS}/" else path


def _tell(identity: str, method: str, status: int, began: float) -> None:
    took = (time.monotonic() - began) * 1e3
    _log.info("request_id=%s method=%s status=%d total_ms=%.1f", identity, method, status, took)


def _identity(given: str) -> str:
    """The caller's own name of a request, or a new one."""
    fits = 0 < len(given) <= _MAX_REQUEST_ID and all(" " < character <= "~" for character in given)
    return given if fits else uuid.uuid4().hex
