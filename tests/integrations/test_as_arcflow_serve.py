"""The Ray application's answers are ``arcflow-serve``'s; without Ray."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving import GENERATIONS, Server, serve_tiny
from engines.bundle import open_bundle
from integrations.batching import Job, Made, Wanted, work
from integrations.ray_serve import answers
from integrations.ray_serve.errors import ApiError
from integrations.ray_serve.files import FORMATS, encode
from integrations.ray_serve.parsing import Parsed, parse
from integrations.ray_serve.replica import Described, Frame, Images
from runtime import Pipeline
from runtime.result import Preview
from tests.integrations.test_parsing import HOSTILE, PROMPT, REJECTED, TINY

ALIASES = ("gpt-image-1", "gpt-image-2")
MANIFEST = open_bundle(TINY).manifest
DESCRIBED = Described(MANIFEST, "", 0)
OF_ITS_OWN = ("created", "created_at", "backend", "timings")
"""What two servers say differently."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    aliases = [word for name in ALIASES for word in ("--alias", f"{name}=tiny")]
    with serve_tiny("--threads", "1", *aliases) as running:
        yield running


def test_what_it_says_of_bad_requests(server: Server) -> None:
    # Two that are no JSON Python's own reader takes; they are rejected a step later, in other words.
    hostile = [body for body, _ in HOSTILE if b"NaN" not in body and b"ud800" not in body]
    for body in [*(json.dumps(fields).encode() for fields in REJECTED), *hostile]:
        with pytest.raises(ApiError) as mine:
            parse(body, MANIFEST, 60.0, ALIASES)
        theirs = server.request("POST", GENERATIONS, body, {"Content-Type": "application/json"})
        assert (mine.value.status, mine.value.body) == (theirs.status, theirs.json()), body[:200]


def test_models(server: Server) -> None:
    mine, theirs = answers.models(DESCRIBED, ALIASES), server.get("/v1/models").json()
    assert [shared(one) for one in mine["data"]] == [shared(one) for one in theirs["data"]]
    assert shared(answers.model(ALIASES[1], DESCRIBED, ALIASES)) == shared(mine["data"][2])
    with pytest.raises(ApiError) as error:
        answers.model("dall-e-2", DESCRIBED, ALIASES)
    assert error.value.body == server.get("/v1/models/dall-e-2").json()


@pytest.mark.parametrize("kind", FORMATS)
def test_files_and_events(server: Server, kind: str) -> None:
    """Frames and image of one request, through the same library calls that Ray's replica makes."""
    fields = {**PROMPT, "seed": 7, "stream": True, "partial_images": 2, "output_format": kind, "output_compression": 80}
    parsed = parse(json.dumps(fields).encode(), MANIFEST, 60)
    wanted = Wanted(parsed.prompt, (7,), parsed.width, parsed.height, parsed.nfe, parsed.partial_images)
    theirs = events(server.generate(**fields).body)
    mine = events(b"".join(stream(wanted, parsed)))
    assert [name for name, _ in mine] == [name for name, _ in theirs]
    for (_, one), (_, other) in zip(mine, theirs, strict=True):
        assert list(one) == list(other)
        same(one.pop("b64_json"), other.pop("b64_json"))
        assert shared(one) == shared(other)


def test_an_answer_without_a_stream(server: Server) -> None:
    fields = {**PROMPT, "seed": 7, "n": 2, "output_format": "jpeg"}
    parsed = parse(json.dumps(fields).encode(), MANIFEST, 60)
    theirs = server.generate(**fields).json()
    files = tuple(base64.b64decode(one["b64_json"]) for one in theirs["data"])
    mine = answers.images(DESCRIBED, parsed, (7, 8), Images(files, 0.1, 0.1, 2, 0), 0.3)
    assert list(mine) == list(theirs)
    assert shared(mine) == shared(theirs)
    assert list(mine["timings"]) == list(theirs["timings"])


def test_a_stream_that_takes_too_long(server: Server) -> None:
    body = server.generate(**PROMPT, size="128x128", nfe=64, stream=True, timeout=0.1).body
    (late,) = [part for part in body.split(b"\n\n") if part.startswith(b"event: error")]
    assert body.endswith(late + b"\n\n")
    message = "the request was not done within its timeout"
    assert answers.failed(ApiError(504, message, code="deadline_exceeded", kind="server_error")) == late + b"\n\n"


def stream(wanted: Wanted, parsed: Parsed) -> Iterator[bytes]:
    frames: list[Preview] = []
    made: list[Any] = []
    with Pipeline.open(TINY, threads=1) as pipeline:
        work(pipeline, [Job(wanted, made.append, on_preview=lambda _, preview: frames.append(preview))])
    (settings,) = wanted.settings(MANIFEST)
    for index, frame in enumerate(frames):
        file = encode(frame.image, {**settings, "sigma": frame.sigma}, parsed.form)
        yield answers.partial(parsed, 7, Frame(index, frame.sigma, file))
    assert isinstance(made[0], Made)
    file = encode(made[0].images[0], settings, parsed.form)
    yield answers.completed(DESCRIBED, parsed, 7, Images((file,), 0.1, 0.1, 1, 0), 0.3)


def events(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Names and data of a stream, strictly in the form that both servers write."""
    parts = body.decode().split("\n\n")
    assert parts.pop() == ""
    lines = [part.split("\n") for part in parts]
    assert all(name.startswith("event: ") and data.startswith("data: ") for name, data in lines)
    return [(name[7:], json.loads(data[6:])) for name, data in lines]


def shared(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in OF_ITS_OWN}


def same(one: str, other: str) -> None:
    """The same pixels, but for what two releases of a library may round their own way, and the same settings."""
    first, second = (Image.open(io.BytesIO(base64.b64decode(file))) for file in (one, other))
    assert first.format == second.format
    assert np.abs(np.asarray(first).astype(int) - np.asarray(second)).max() <= 4
    for name in ("comment", "arcflow", "parameters"):
        assert first.info.get(name) == second.info.get(name)
