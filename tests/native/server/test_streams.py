"""Streamed images with the clients that users have: the ``openai`` package, sync and async."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from benchmarks.serving import GENERATIONS, Server, summed
from runtime import Pipeline
from runtime.image import encode_png
from tests.native.server.serving import PROMPT, SLOW, Start, images, is_running, logged, until, waiting_in

PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"
LONG: dict[str, Any] = {"prompt": PROMPT, "size": "128x128", "extra_body": {"nfe": 64}}
"""More than a second of work, with a partial every few evaluations."""


def client(server: Server, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="any", max_retries=0, **options)


def async_client(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="any", max_retries=0)


def stream(server: Server, partials: int, seed: int = 7, **fields: Any) -> list[Any]:
    """All events of one streamed image."""
    body = {"seed": seed, **fields.pop("extra_body", {})}
    with client(server) as openai_client:
        asked = {"prompt": PROMPT, "partial_images": partials, **fields}
        return list(openai_client.images.generate(stream=True, extra_body=body, **asked))


def file_of(event: Any) -> bytes:
    return base64.b64decode(event.b64_json)


def pixels(event: Any) -> np.ndarray:
    with Image.open(io.BytesIO(file_of(event))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def check_order(events: Sequence[Any], partials: int) -> None:
    assert [one.type for one in events] == [PARTIAL] * partials + [COMPLETED]
    assert [one.partial_image_index for one in events[:-1]] == list(range(partials))


def test_frames_approach_the_image_and_the_image_is_the_plain_answers(server: Server) -> None:
    events = stream(server, 8)
    check_order(events, 8)
    final = pixels(events[-1])
    distances = [np.abs(pixels(one) - final).mean() for one in events[:-1]]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] > 0, "the last frame is not the image"
    levels = [one.sigma for one in events[:-1]]
    assert levels == sorted(levels, reverse=True) and 0 < levels[-1] < levels[0] < 1
    plain = server.generate(prompt=PROMPT, seed=7)
    assert [file_of(events[-1])] == images(plain)
    last = events[-1]
    assert (last.seed, last.nfe, last.model, last.size, last.output_format) == (7, 2, "tiny", "64x64", "png")
    assert set(last.timings) == set(plain.json()["timings"])
    assert (last.background, last.quality, last.usage.total_tokens) == ("opaque", "auto", 0)
    assert abs(last.created_at - time.time()) < 60


def test_frames_are_pythons(server: Server, pipeline: Pipeline, same_zlib: bool) -> None:
    made = pipeline.generate(PROMPT, seed=7, width=96, height=128, nfe=3, previews=2)
    events = stream(server, 2, size="96x128", extra_body={"nfe": 3})
    for event, preview in zip(events[:-1], made.previews[0], strict=True):
        wanted = encode_png(preview.image, {**made.settings.of_image(0), "sigma": preview.sigma, "scale": 1})
        with Image.open(io.BytesIO(file_of(event))) as ours, Image.open(io.BytesIO(wanted)) as theirs:
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
            assert ours.info == theirs.info
        assert file_of(event) == wanted or not same_zlib


def test_events_come_while_the_image_is_made(server: Server) -> None:
    with client(server).images.generate(stream=True, partial_images=3, **LONG) as events:
        times = [time.monotonic() for _ in events]
    gaps = np.diff(times)
    assert gaps.sum() > 0.1, "they do not come together at the end"
    assert gaps.max() < 0.8 * gaps.sum()


def test_no_partials_and_other_formats(server: Server) -> None:
    check_order(stream(server, 0), 0)
    for name in ("jpeg", "webp"):
        events = stream(server, 2, output_format=name, output_compression=60)
        check_order(events, 2)
        assert {one.output_format for one in events} == {name}
        for event in events:
            with Image.open(io.BytesIO(file_of(event))) as image:
                assert (image.format, image.size) == (name.upper(), (64, 64))
        plain = server.generate(prompt=PROMPT, seed=7, output_format=name, output_compression=60)
        assert [file_of(events[-1])] == images(plain)


def test_the_async_client_and_callers_who_share_a_batch(start: Start) -> None:
    server = start()

    async def one(openai_client: openai.AsyncOpenAI, seed: int, partials: int) -> list[Any]:
        made = await openai_client.images.generate(
            prompt=f"a dog {seed}", stream=True, partial_images=partials, extra_body={"seed": seed}
        )
        return [event async for event in made]

    async def all_at_once() -> list[list[Any]]:
        async with async_client(server) as openai_client:
            slow = asyncio.create_task(openai_client.images.generate(**LONG))
            while not await asyncio.to_thread(is_running, server):
                await asyncio.sleep(0.01)
            made = await asyncio.gather(*(one(openai_client, seed, 3 if seed < 4 else 0) for seed in range(6)))
            assert (await slow).data
            return made

    made = asyncio.run(all_at_once())
    metrics = server.metrics()
    assert summed(metrics, "arcflow_batch_size_count") < 6  # the long one, and two batches unless a caller came late
    for seed, events in enumerate(made):
        check_order(events, 3 if seed < 4 else 0)
        plain = server.generate(prompt=f"a dog {seed}", seed=seed)
        with Image.open(io.BytesIO(images(plain)[0])) as image:
            # A matrix product's last bit may depend on how many rows it has.
            assert np.abs(np.asarray(image).astype(int) - pixels(events[-1])).max() <= 1
    assert summed(metrics, "arcflow_partial_images_total") == 12
    assert metrics['arcflow_streams_total{ended="completed"}'] == 6


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"partial_images": 9}, "partial_images"),
        ({"response_format": "url"}, "response_format"),
        ({"size": "65x64"}, "size"),
    ],
)
def test_what_is_rejected_is_an_ordinary_error(server: Server, fields: dict[str, Any], param: str) -> None:
    for streams in (True, False):
        if not streams and param == "n":
            continue
        with pytest.raises(openai.BadRequestError) as error:
            client(server).images.generate(prompt=PROMPT, stream=streams, **fields)
        assert (error.value.param, error.value.response.headers["content-type"]) == (param, "application/json")


def test_partials_need_a_stream(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match='add "stream": true'):
        client(server).images.generate(prompt=PROMPT, partial_images=2)
    assert server.generate(prompt=PROMPT, partial_images=0).status == 200


def test_an_error_in_the_middle_is_raised(server: Server) -> None:
    fields = {**LONG, "extra_body": {"nfe": 64, "timeout": 0.3}}
    seen: list[str] = []
    with pytest.raises(openai.APIError, match="not done within its timeout") as error:
        seen.extend(event.type for event in client(server).images.generate(stream=True, partial_images=8, **fields))
    assert (error.value.code, error.value.type, error.value.param) == ("deadline_exceeded", "server_error", None)
    assert COMPLETED not in seen
    assert until(lambda: not is_running(server), 3)


def test_a_full_queue_is_429(start: Start) -> None:
    server = start("--queue", "1")
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(server.generate, **SLOW)]
        assert until(lambda: is_running(server))
        slow.append(pool.submit(server.generate, **SLOW))
        assert until(lambda: waiting_in(server) == 1)
        with pytest.raises(openai.RateLimitError):
            stream(server, 3)
        server.close()
        assert all(isinstance(one.exception(), OSError) for one in slow)


def test_a_caller_who_closes_between_two_partials_ends_the_work(server: Server) -> None:
    gone, ended = 'arcflow_cancelled_total{reason="client_gone"}', 'arcflow_streams_total{ended="client_gone"}'
    before = server.metrics()
    with client(server) as openai_client:
        events = openai_client.images.generate(stream=True, partial_images=8, **LONG)
        assert next(events).type == PARTIAL
        events.close()
        assert until(lambda: not is_running(server), 1)
    after = server.metrics()
    assert (after[gone], after[ended]) == (before[gone] + 1, before[ended] + 1)
    assert summed(after, "arcflow_images_total") == summed(before, "arcflow_images_total")
    (line,) = logged(server, ended="client_gone")
    assert line["status"] == 200 and 1 <= line["partials"] < 8


def test_a_caller_who_stops_reading_gets_all_of_it_later(server: Server) -> None:
    body = json.dumps({"prompt": PROMPT, "seed": 7, "stream": True, "partial_images": 8, "size": "128x128"})
    head = f"POST {GENERATIONS} HTTP/1.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        raw.connect(("127.0.0.1", server.port))
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert until(lambda: not is_running(server))
        assert server.generate(prompt=PROMPT).status == 200
        time.sleep(0.5)
        answer = b""
        while part := raw.recv(512):
            answer += part
    assert answer.endswith(b"\r\n0\r\n\r\n")
    assert answer.count(b"event: ") == 9


def test_sigterm_finishes_a_stream_that_has_begun(start: Start) -> None:
    server = start("--grace", "60")
    events = client(server).images.generate(stream=True, partial_images=2, **LONG)
    first = next(events)
    server.process.terminate()
    assert until(lambda: server.get("/ready").status == 503)
    with pytest.raises(openai.InternalServerError):
        stream(server, 2)
    check_order([first, *events], 2)
    assert server.process.wait(10) == 0


def test_the_grace_ends_in_the_middle_of_a_stream(start: Start) -> None:
    server = start("--grace", "0.05")
    events = client(server).images.generate(stream=True, partial_images=8, **LONG)
    next(events)
    server.process.terminate()
    with pytest.raises(openai.APIError) as error:
        list(events)
    assert error.value.code == "draining"
    assert server.process.wait(10) == 1
