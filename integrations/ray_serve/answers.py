"""The documents that answer: images, events of a stream, models. Their form is ``arcflow-serve``'s."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from integrations.ray_serve.errors import ApiError
from integrations.ray_serve.parsing import MAX_PARTIALS, model_not_found

if TYPE_CHECKING:
    from engines.schema import Range
    from integrations.ray_serve.parsing import Parsed
    from integrations.ray_serve.replica import Described, Frame, Images


PARTIAL = "image_generation.partial_image"
COMPLETED = "image_generation.completed"
EVENTS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Headers of a stream: nginx would keep its events until it has many."""


def images(described: Described, parsed: Parsed, seeds: Sequence[int], made: Images, total: float) -> dict[str, Any]:
    """The answer to a request that does not stream. total: seconds since it arrived."""
    files = zip(made.files, seeds, strict=True)
    return {
        "created": int(time.time()),
        "data": [{"b64_json": base64.b64encode(file).decode(), "seed": seed} for file, seed in files],
        "model": described.manifest.model,
        "size": f"{parsed.width}x{parsed.height}",
        "nfe": parsed.nfe,
        "output_format": parsed.form.format,
        "timings": _timings(made, total),
    }


def partial(parsed: Parsed, seed: int, frame: Frame) -> bytes:
    """The event of a partial image."""
    data = _image(parsed, seed, frame.file)
    return _event(PARTIAL, {**data, "partial_image_index": frame.index, "sigma": frame.sigma})


def completed(described: Described, parsed: Parsed, seed: int, made: Images, total: float) -> bytes:
    """The event that ends a stream with its image. total: seconds since the request arrived."""
    (file,) = made.files
    more = {
        "nfe": parsed.nfe,
        "model": described.manifest.model,
        "usage": {  # OpenAI's type asks for it. Nothing is counted in tokens here.
            "input_tokens": 0,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
            "output_tokens": 0,
            "total_tokens": 0,
        },
        "timings": _timings(made, total),
    }
    return _event(COMPLETED, {**_image(parsed, seed, file), **more})


def failed(error: ApiError) -> bytes:
    """The event that ends a stream without its image."""
    return _event("error", error.body)


def models(described: Described, names: Sequence[str]) -> dict[str, Any]:
    """The model under its own name and each of ``names``."""
    data = [_model(name, described) for name in (described.manifest.model, *names)]
    return {"object": "list", "data": data}


def model(name: str, described: Described, names: Sequence[str]) -> dict[str, Any]:
    """The model under one of its names. Raises ApiError for another one."""
    if error := model_not_found(name, described.manifest, names):
        raise error
    return _model(name, described)


def _event(kind: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data}, separators=(',', ':'))}\n\n".encode()


def _image(parsed: Parsed, seed: int, file: bytes) -> dict[str, Any]:
    return {
        "b64_json": base64.b64encode(file).decode(),
        "created_at": int(time.time()),
        "size": f"{parsed.width}x{parsed.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": parsed.form.format,
        "seed": seed,
    }


def _timings(made: Images, total: float) -> dict[str, float]:
    queue = max(total - made.generate - made.encode, 0.0)
    stages = {"queue": queue, "generate": made.generate, "encode": made.encode, "total": total}
    return {stage: round(seconds, 6) for stage, seconds in stages.items()}


def _model(name: str, described: Described) -> dict[str, Any]:
    manifest = described.manifest
    limits, schedule = manifest.limits, manifest.schedule

    def span(limit: Range) -> dict[str, int]:
        return {"min": limit.min, "usual": limit.opt, "max": limit.max}

    return {
        "id": name,
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
        "partial_images": {"min": 0, "usual": 0, "max": MAX_PARTIALS},
    }
