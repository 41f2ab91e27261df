"""The front: HTTP as ``arcflow-serve`` speaks it. It generates nothing, so it can ask again when a replica dies."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
import uuid
from typing import TYPE_CHECKING, Any

from integrations.batching import Wanted
from integrations.ray_serve.parsing import ApiError, Parsed, parse
from integrations.ray_serve.replica import Described, Failure, Images

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle
    from starlette.requests import Request
    from starlette.responses import Response

    from engines.schema import Range
    from integrations.ray_serve.options import Options

GENERATIONS = "/v1/images/generations"
METHODS = {
    GENERATIONS: ("POST",),
    "/v1/models": ("GET", "HEAD"),
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
        self._options = options
        self._known: Described | None = None

    async def __call__(self, request: Request) -> Response:
        """The answer to one HTTP request."""
        from starlette.responses import JSONResponse

        began = time.monotonic()
        identity = _identity(request.headers.get("x-request-id", ""))
        headers = {"x-request-id": identity}
        try:
            content, status = await self._route(request), 200
        except ApiError as error:
            content, status = error.body, error.status
            if status == 405:
                headers["Allow"] = ", ".join(METHODS[request.url.path])
            if error.retry_after:
                headers["Retry-After"] = str(error.retry_after)
        took = (time.monotonic() - began) * 1e3
        _log.info("request_id=%s method=%s status=%d total_ms=%.1f", identity, request.method, status, took)
        return JSONResponse(content, status_code=status, headers=headers)

    async def _route(self, request: Request) -> dict[str, Any]:
        path = request.url.path
        if path not in METHODS:
            raise ApiError(404, f"there is nothing at this path; there are {', '.join(METHODS)}", code="not_found")
        if request.method not in METHODS[path]:
            message = "this path does not take this method; see the Allow header"
            raise ApiError(405, message, code="method_not_allowed")
        if path == "/health":
            return {"status": "ok"}
        if path == GENERATIONS:
            return await self._generate(request)
        described = await self._described()
        return {"status": "ready"} if path == "/ready" else _models(described)

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

    async def _generate(self, request: Request) -> dict[str, Any]:
        arrived = time.monotonic()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            message = "the body must be JSON, not compressed, with the header Content-Type: application/json"
            raise ApiError(415, message, code="unsupported_media_type")
        described = await self._described()
        parsed = parse(await self._body(request), described.manifest, self._options.timeout)
        seed = secrets.randbits(_EXACT) if parsed.seed is None else parsed.seed
        # The seeds are settled here: a second replica makes the images that the first would have made.
        seeds = tuple((seed + j) % (1 << 64) for j in range(parsed.n))
        wanted = Wanted(parsed.prompt, seeds, parsed.width, parsed.height, parsed.nfe)
        made = await self._ask(wanted, arrived + parsed.timeout - time.monotonic())
        if isinstance(made, Failure):
            if made.invalid:
                raise ApiError(400, made.message, code="invalid_value")
            message = f"the image could not be made: {made.message}"
            raise ApiError(500, message, code="generation_failed", kind="server_error")
        return _answer(described, parsed, seeds, made, time.monotonic() - arrived)

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._options.max_body:
                raise ApiError(413, "the body is larger than this server takes (max_body)", code="too_large")
        return bytes(body)

    async def _ask(self, wanted: Wanted, seconds: float) -> Images | Failure:
        """Images from whichever replica has room; from another one where that dies. Raises ApiError."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

        pause = 0.1
        try:
            async with asyncio.timeout(seconds):
                for attempt in range(self._options.retries + 1):
                    if attempt:
                        await asyncio.sleep(pause)
                        pause *= 2
                    try:
                        made: Images | Failure = await self._replicas.generate.remote(wanted)
                        return made
                    except (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError) as error:
                        _log.warning("attempt %d lost its replica: %s", attempt + 1, type(error).__name__)
        except TimeoutError as error:
            message = "the request was not done within its timeout"
            raise ApiError(504, message, code="deadline_exceeded", kind="server_error") from error
        except BackPressureError as error:
            message = "the queue is full; try again later"
            raise ApiError(429, message, code="queue_full", kind="rate_limit_error", retry_after=1) from error
        message = f"{self._options.retries + 1} replicas died over this request; try again later"
        raise ApiError(503, message, code="replica_lost", kind="server_error", retry_after=5)


def _identity(given: str) -> str:
    """The caller's own name of a request, or a new one."""
    fits = 0 < len(given) <= _MAX_REQUEST_ID and all(" " < character <= "~" for character in given)
    return given if fits else uuid.uuid4().hex


def _answer(described: Described, parsed: Parsed, seeds: tuple[int, ...], made: Images, total: float) -> dict[str, Any]:
    files = zip(made.files, seeds, strict=True)
    queue = max(total - made.generate - made.encode, 0.0)
    stages = {"queue": queue, "generate": made.generate, "encode": made.encode, "total": total}
    return {
        "created": int(time.time()),
        "data": [{"b64_json": base64.b64encode(file).decode(), "seed": seed} for file, seed in files],
        "model": described.manifest.model,
        "size": f"{parsed.width}x{parsed.height}",
        "nfe": parsed.nfe,
        "output_format": "png",
        "timings": {stage: round(seconds, 6) for stage, seconds in stages.items()},
    }


def _models(described: Described) -> dict[str, Any]:
    manifest = described.manifest
    limits, schedule = manifest.limits, manifest.schedule

    def span(limit: Range) -> dict[str, int]:
        return {"min": limit.min, "usual": limit.opt, "max": limit.max}

    one = {
        "id": manifest.model,
        "object": "model",
        "created": described.loaded,
        "owned_by": "arcflow",
        "bundle": f"{manifest.model}-{manifest.precision}-{manifest.target}",
        "digest": manifest.digest,
        "backend": described.backend,
        "width": span(limits.width),
        "height": span(limits.height),
        "multiple": limits.multiple,
        "nfe": {"min": 1, "usual": schedule.nfe, "max": schedule.max_nfe},
    }
    return {"object": "list", "data": [one]}
