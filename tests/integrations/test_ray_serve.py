"""The application on a real Ray Serve with two replicas on this machine.

Ray is not among the packages that the tests need; with it: ``pip install 'ray[serve]'``, then this file.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.locate import BUILT_IN
from integrations.batching import Wanted
from integrations.ray_serve.app import build
from integrations.ray_serve.files import Form, encode
from integrations.ray_serve.front import GENERATIONS
from runtime import Pipeline
from runtime.image import encode_png

# Ray's name for "this node is the loopback address", on Linux too; its ports are then open to this machine alone.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[serve]'")
serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'ray[serve]'")
pytestmark = pytest.mark.slow

PROMPTS = ("a smiling face with sunglasses", "picture of a pizza", "a red apple", "a red heart")
SLOW: dict[str, Any] = {"prompt": PROMPTS[0], "n": 10, "size": "128x128", "nfe": 64}
STREAM: dict[str, Any] = {**SLOW, "n": 1, "seed": 3, "stream": True, "partial_images": 8}
ALIAS = "gpt-image-1"
TIMEOUT = 60.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any

    def files(self) -> list[bytes]:
        assert self.status == 200, self.body
        return [base64.b64decode(one["b64_json"]) for one in self.body["data"]]


@dataclass(frozen=True)
class Service:
    port: int

    def ask(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2 * TIMEOUT)
        try:
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, headers, json.loads(text) if text else None)
        finally:
            connection.close()

    def generate(self, **fields: object) -> Answer:
        return self.ask("POST", GENERATIONS, json.dumps(fields).encode())


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
    )
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        options = {"model": str(BUILT_IN / "tiny-fp16-cpu"), "gpus": "0", "threads": "1", "min_replicas": "2"}
        more = {"max_batch": "4", "timeout": str(TIMEOUT), "aliases": ALIAS}
        serve.run(build({**options, **more}), name="arcflow")
        yield Service(port)
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open(BUILT_IN / "tiny-fp16-cpu", threads=1)


def expected(pipeline: Pipeline, prompt: str, seed: int) -> bytes:
    made = pipeline.generate(prompt, seed=seed)
    return encode_png(made.images[0], {**made.settings.of_image(0), "scale": 1})


def pixels(file: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(file))).astype(int)


def burned(process: int) -> int:
    """Ticks of a processor that it has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def processes(count: int) -> set[int]:
    """Of the replicas that answer, as soon as that many do."""
    handle = serve.get_deployment_handle("Replica", "arcflow").options(stream=True)
    end, found = time.monotonic() + TIMEOUT, set()
    while len(found) < count and time.monotonic() < end:
        asked = [handle.generate.remote(Wanted(PROMPTS[0], (j,), 64, 64, 2), Form()) for j in range(8)]
        found |= {images.process for one in asked for images in one}
    return found


def test_an_image_is_the_pipelines(service: Service, pipeline: Pipeline) -> None:
    answer = service.generate(prompt=PROMPTS[0], seed=7, size="64x64")
    assert answer.files() == [expected(pipeline, PROMPTS[0], 7)]
    assert (answer.body["model"], answer.body["size"], answer.body["nfe"]) == ("tiny", "64x64", 2)
    assert answer.body["data"][0]["seed"] == 7
    assert answer.headers["x-request-id"]
    drawn = service.generate(prompt=PROMPTS[0]).body["data"][0]["seed"]
    assert 0 <= drawn < 2**53


def test_it_says_what_it_is(service: Service, pipeline: Pipeline) -> None:
    assert service.ask("GET", "/health").body == {"status": "ok"}
    assert service.ask("GET", "/ready").body == {"status": "ready"}
    model, other = service.ask("GET", "/v1/models").body["data"]
    assert other == {**model, "id": ALIAS} == service.ask("GET", f"/v1/models/{ALIAS}").body
    assert (model["id"], model["digest"]) == ("tiny", pipeline.manifest.digest)
    assert model["width"] == {"min": 32, "usual": 64, "max": 128}


def test_the_model_has_another_name(service: Service) -> None:
    assert service.generate(prompt=PROMPTS[0], model=ALIAS).body["model"] == "tiny"
    missing = service.ask("GET", "/v1/models/dall-e-3")
    assert (missing.status, missing.body["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("form", [Form("jpeg", 90), Form("webp", 50)])
def test_other_files(service: Service, pipeline: Pipeline, form: Form) -> None:
    asked = {"output_format": form.format, "output_compression": form.quality}
    answer = service.generate(prompt=PROMPTS[0], seed=7, size="64x64", **asked)
    made = pipeline.generate(PROMPTS[0], seed=7)
    assert answer.files() == [encode(made.images[0], made.settings.of_image(0), form)]
    assert answer.body["output_format"] == form.format


def test_partial_images_are_streamed_to_openais_client(service: Service, pipeline: Pipeline, tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    server = {"base_url": f"http://127.0.0.1:{service.port}/v1", "api_key": "none", "max_retries": 0}
    asked: dict[str, Any] = {"prompt": PROMPTS[0], "model": ALIAS, "size": "64x64", "extra_body": {"seed": 7}}

    async def together() -> list[Any]:
        async with openai.AsyncOpenAI(**server) as client:
            return [one async for one in await client.images.generate(**asked, stream=True, partial_images=3)]

    with openai.OpenAI(**server) as client:
        one_by_one = list(client.images.generate(**asked, stream=True, partial_images=3))
        with pytest.raises(openai.BadRequestError, match="33 px"):
            client.images.generate(**{**asked, "size": "33x64"}, stream=True)
        with pytest.raises(openai.APIError, match="within its timeout"):
            late = {**asked, "size": "128x128", "extra_body": {"nfe": 64, "timeout": 0.1}}
            list(client.images.generate(**late, stream=True, partial_images=8))
    made = pipeline.generate(PROMPTS[0], seed=7, previews=3)
    image, *frames = [file.read_bytes() for file in made.save(tmp_path / "face.png")]
    for events in (one_by_one, asyncio.run(together())):
        assert [event.type.rpartition(".")[2] for event in events] == [*["partial_image"] * 3, "completed"]
        assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]
        assert [base64.b64decode(event.b64_json) for event in events] == [*frames, image]
        assert (events[-1].seed, events[-1].nfe, events[-1].size) == (7, 2, "64x64")


def test_bad_requests_are_told_why(service: Service) -> None:
    wrong = service.generate(prompt="a rose", size="33x64")
    assert (wrong.status, wrong.body["error"]["param"]) == (400, "size")
    assert "multiple of 16 from 32 to 128" in wrong.body["error"]["message"]
    assert service.ask("GET", "/nothing").status == 404
    assert service.ask("GET", GENERATIONS).headers["allow"] == "POST"
    assert service.ask("POST", GENERATIONS, b"{}", "text/plain").status == 415
    assert service.ask("POST", GENERATIONS, b" " * (2 << 20)).status == 413
    late = service.generate(**SLOW, timeout=0.05)
    assert (late.status, late.body["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize(("callers", "fields"), [(8, SLOW), (40, STREAM)], ids=["images", "streams"])
def test_who_hangs_up_is_not_generated_for(service: Service, callers: int, fields: dict[str, Any]) -> None:
    """Both replicas get seconds of work that nobody waits for any more, and drop it."""
    replicas = processes(2)
    body = json.dumps(fields).encode()
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    left = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(callers)]
    for connection in left:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    time.sleep(0.5)
    for connection in left:
        connection.close()
    time.sleep(0.5)  # The evaluation that they are in.
    before = sum(map(burned, replicas))
    time.sleep(1)
    spent = (sum(map(burned, replicas)) - before) / os.sysconf("SC_CLK_TCK")
    assert spent < 0.3, f"the replicas went on for {spent:.1f} s of a core"
    assert service.generate(prompt=PROMPTS[1]).status == 200


def test_a_killed_replica_loses_nothing(service: Service, pipeline: Pipeline) -> None:
    before = processes(2)
    assert len(before) == 2
    killed = min(before)

    def one(j: int) -> Answer:
        if j == 40:
            os.kill(killed, signal.SIGKILL)
        return service.generate(prompt=PROMPTS[j % 4], seed=j, size="64x64")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(160)))
    assert [answer.status for answer in answers] == [200] * 160
    for j, answer in enumerate(answers):
        (file,) = answer.files()
        # In a shared batch a product's last bit may differ, and with it a pixel by one step.
        assert abs(pixels(file) - pixels(expected(pipeline, PROMPTS[j % 4], j))).max() <= 1
    after = processes(2)
    assert killed not in after, "it was really killed"
    assert len(after) == 2, "and another one took its place"


def test_a_replica_killed_while_it_streams_loses_no_frame(service: Service, pipeline: Pipeline) -> None:
    before = {process: burned(process) for process in processes(2)}
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=2 * TIMEOUT)
    connection.request("POST", GENERATIONS, json.dumps(STREAM), {"Content-Type": "application/json"})
    answer, events = connection.getresponse(), []
    killed = 0
    for line in answer:
        if line.startswith(b"data: "):
            events.append(json.loads(line.removeprefix(b"data: ")))
        if events and not killed:
            killed = max(before, key=lambda process: burned(process) - before[process])
            os.kill(killed, signal.SIGKILL)
    connection.close()
    assert [event.get("partial_image_index") for event in events] == [*range(8), None]
    made = pipeline.generate(SLOW["prompt"], seed=3, width=128, height=128, nfe=SLOW["nfe"], previews=8)
    images = [*(frame.image for frame in made.previews[0]), made.images[0]]
    for event, image in zip(events, images, strict=True):
        assert (pixels(base64.b64decode(event["b64_json"])) == image).all()
    assert killed not in processes(2)


def test_nothing_listens_beyond_this_machine(service: Service) -> None:
    """But Serve's replicas to each other: Ray 2.60 opens those ports on every address, whatever it is told."""
    psutil = pytest.importorskip("psutil")
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {
        (process.name(), connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ("127.0.0.1", service.port) in {(ip, port) for _, ip, port in listening}
    open_to_all = {(name, ip) for name, ip, _ in listening if not ip.startswith("127.") and ip != "::1"}
    assert all(name.startswith("ray::ServeRepl") for name, _ in open_to_all), open_to_all
