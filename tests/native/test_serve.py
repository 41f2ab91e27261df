"""``arcflow-serve`` with the embedded default, over real sockets: images, limits, callers who leave, and its end."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving import GENERATIONS, Answer, Server, send
from engines.locate import BUILT_IN
from runtime import Pipeline
from runtime.image import encode_png

PROMPT = "a dark ankle boot"
SLOW: dict[str, Any] = {"prompt": PROMPT, "n": 10, "size": "64x64", "nfe": 64}
"""Seconds of work: ten of the largest images with the most evaluations."""

Start = Callable[..., Server]


@pytest.fixture(scope="module")
def start(native_build: Path, onnxruntime_library: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def run(*options: str) -> Server:
            wanted = [
                "--threads",
                "1",
                "--library",
                str(onnxruntime_library),
                "--model",
                str(BUILT_IN / "tiny-fp32-cpu"),
            ]
            return stack.enter_context(Server(native_build / "arcflow-serve", [*wanted, *options]))

        yield run


@pytest.fixture(scope="module")
def server(start: Start) -> Server:
    return start()


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open(BUILT_IN / "tiny-fp32-cpu", threads=1)


def pictures(answer: Answer) -> list[bytes]:
    assert answer.status == 200, answer.body
    return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]


def check_files(found: list[bytes], wanted: list[bytes], same_zlib: bool) -> None:
    """Equal bytes, or where the zlibs differ equal pixels and settings."""
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        with Image.open(io.BytesIO(ours)) as one, Image.open(io.BytesIO(theirs)) as other:
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
            assert one.info == other.info
        assert ours == theirs or not same_zlib


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def in_background(pool: ThreadPoolExecutor, server: Server, **fields: object) -> Future[Answer]:
    return pool.submit(lambda: server.generate(**fields))


def is_running(server: Server) -> bool:
    return server.metrics()["arcflow_in_flight_images"] > 0


def test_a_picture_is_pythons_byte_for_byte(server: Server, pipeline: Pipeline, same_zlib: bool) -> None:
    answers = [server.generate(prompt=PROMPT, seed=7) for _ in range(2)]
    generation = pipeline.generate(PROMPT, seed=7)
    wanted = encode_png(generation.images[0], {**generation.settings.of_image(0), "scale": 1})
    assert pictures(answers[0]) == pictures(answers[1])
    check_files(pictures(answers[0]), [wanted], same_zlib)
    document = answers[0].json()
    assert document["data"][0]["seed"] == 7
    assert (document["model"], document["size"], document["nfe"]) == ("tiny", "32x32", 2)
    assert abs(document["created"] - time.time()) < 60
    assert set(document["timings"]) == {"queue", "generate", "encode", "total"}


def test_several_pictures_with_size_and_evaluations(server: Server, pipeline: Pipeline, same_zlib: bool) -> None:
    answer = server.generate(prompt="a grey bag", seed=2**64 - 1, n=3, size="64x48", nfe=3, model="tiny", user="me")
    generation = pipeline.generate("a grey bag", seed=2**64 - 1, num_images=3, width=64, height=48, nfe=3)
    wanted = [
        encode_png(image, {**generation.settings.of_image(j), "scale": 1}) for j, image in enumerate(generation.images)
    ]
    check_files(pictures(answer), wanted, same_zlib)
    assert [one["seed"] for one in answer.json()["data"]] == [2**64 - 1, 0, 1]


def test_without_a_seed_pictures_differ_and_the_seed_is_told(server: Server) -> None:
    first, second = (server.generate(prompt=PROMPT) for _ in range(2))
    assert pictures(first) != pictures(second)
    seed = first.json()["data"][0]["seed"]
    assert 0 <= seed < 2**53
    assert pictures(server.generate(prompt=PROMPT, seed=seed)) == pictures(first)


def test_models_health_and_readiness(server: Server) -> None:
    model = server.get("/v1/models").json()["data"][0]
    assert (model["id"], model["object"], model["bundle"]) == ("tiny", "model", "tiny-fp32-cpu")
    assert model["width"] == {"min": 16, "usual": 32, "max": 64}
    assert server.get("/health").status == server.get("/ready").status == 200
    assert server.request("HEAD", "/health").body == b""


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("POST", GENERATIONS, b"{", {}, 400, "invalid_json"),
        ("POST", GENERATIONS, b"[" * 100_000, {}, 400, "invalid_json"),
        ("POST", GENERATIONS, b'{"prompt": "\xff"}', {}, 400, "invalid_json"),
        ("POST", GENERATIONS, b'{"prompt": "\xe2\x80\x83"}', {}, 400, "invalid_value"),
        ("POST", GENERATIONS, b'{"prompt": "a", "steps": 4}', {}, 400, "unknown_field"),
        ("POST", GENERATIONS, b'{"prompt": "a", "size": "1024x1024"}', {}, 400, "invalid_value"),
        ("POST", GENERATIONS, b'{"prompt": "a", "model": "dall-e-3"}', {}, 404, "model_not_found"),
        ("POST", GENERATIONS, b"prompt=a", {"Content-Type": "application/x-www-form-urlencoded"}, 415, None),
        ("POST", GENERATIONS, b"{}", {"Content-Encoding": "gzip"}, 415, None),
        ("POST", GENERATIONS, b'{"prompt": "' + b"a" * (1 << 20) + b'"}', {}, 413, "too_large"),
        ("POST", "/v1/images/edits", b"{}", {}, 404, "not_found"),
        ("GET", GENERATIONS, None, {}, 405, "method_not_allowed"),
        ("DELETE", "/health", None, {}, 405, "method_not_allowed"),
        ("GET", "/" + "a" * 9000, None, {}, None, None),
    ],
)
def test_what_is_refused(
    server: Server,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    status: int | None,
    code: str | None,
) -> None:
    answer = server.request(method, path, body, {"Content-Type": "application/json", **headers})
    assert answer.status in ((status,) if status else (400, 414))
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert code is None or error["code"] == code
    assert answer.headers["x-request-id"]
    if status == 405:
        assert answer.headers["allow"]


def test_request_ids(server: Server) -> None:
    given = server.request("GET", "/health", headers={"x-request-id": "abc-123"})
    assert given.headers["x-request-id"] == "abc-123"
    made = [
        server.request("GET", "/health", headers=headers).headers["x-request-id"]
        for headers in ({}, {"x-request-id": "a b"}, {"x-request-id": "x" * 129})
    ]
    assert len(set(made)) == 3
    assert all(len(one) == 32 for one in made)
    lines = {line.get("request_id"): line for line in server.log() if line["event"] == "request"}
    assert lines["abc-123"]["path"] == "/health"
    assert lines["abc-123"]["status"] == 200


RAW = [
    b"\x00\xff\x16\x03\x01garbage\r\n\r\n",
    b"GET\r\n\r\n",
    b"BREW /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/9.9\r\n\r\n",
    b"GET /health HTTP/1.1\r\nBad Header\r\n\r\n",
    b"GET /health HTTP/1.1\r\n" + b"x-a: b\r\n" * 200 + b"\r\n",
    b"GET /health HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n\r\n",
    b"POST " + GENERATIONS.encode() + b" HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: -5\r\n\r\n{}",
    b"POST " + GENERATIONS.encode() + b" HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n{}",
    b"POST " + GENERATIONS.encode() + b" HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 1\r\n"
    b"Content-Length: 2\r\n\r\n{}",
    b"POST "
    + GENERATIONS.encode()
    + b" HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"zz\r\n{}\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("data", RAW)
def test_malformed_http_is_refused_once_and_the_connection_ends(server: Server, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := raw.recv(4096):
                answer += part
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert server.get("/health").status == 200


def test_a_body_that_never_comes_whole(server: Server) -> None:
    head = f"POST {GENERATIONS} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(head + b'{"prompt":')
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert server.generate(prompt=PROMPT).status == 200


def test_a_connection_is_kept(server: Server) -> None:
    with contextlib.closing(server.connect()) as connection:
        sockets = []
        for _ in range(3):
            assert send(connection, "GET", "/health").status == 200
            sockets.append(connection.sock)
    assert sockets[0] is sockets[1] is sockets[2] is not None


def test_metrics_are_prometheus_text(server: Server) -> None:
    before = server.metrics()
    server.generate(prompt=PROMPT, n=2)
    server.get("/nowhere")
    answer = server.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    after = server.metrics()
    assert after["arcflow_images_total"] == before["arcflow_images_total"] + 2
    route = f'arcflow_requests_total{{route="{GENERATIONS}",code="200"}}'
    assert after[route] == before.get(route, 0) + 1
    assert after['arcflow_requests_total{route="other",code="404"}'] >= 1
    buckets = [value for name, value in after.items() if name.startswith("arcflow_batch_size_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == after["arcflow_batch_size_count"]
    assert after["process_resident_memory_bytes"] == pytest.approx(server.resident_bytes(), rel=0.2)
    assert after["arcflow_ready"] == 1


def test_requests_that_wait_are_made_together(start: Start, pipeline: Pipeline) -> None:
    server = start("--max-batch", "8")
    with ThreadPoolExecutor(9) as pool:
        slow = in_background(pool, server, **{**SLOW, "n": 1})
        assert until(lambda: is_running(server))
        waiting = [in_background(pool, server, prompt=f"a boot {j % 3}", seed=j) for j in range(8)]
        assert slow.result().status == 200
        answers = [one.result() for one in waiting]
    metrics = server.metrics()
    assert metrics['arcflow_batch_size_bucket{le="1"}'] < 5  # the slow one, and whoever came too late to be joined
    assert metrics["arcflow_batch_size_sum"] == 9
    for seed, answer in enumerate(answers):
        wanted = pipeline.generate(f"a boot {seed % 3}", seed=seed).images[0]
        with Image.open(io.BytesIO(pictures(answer)[0])) as image:
            # A matrix product's last bit may depend on how many rows it has: a pixel may round the other way.
            assert np.abs(np.asarray(image).astype(int) - wanted).max() <= 1
            settings = json.loads(image.info["arcflow"])
        assert (settings["prompt"], settings["seed"]) == (f"a boot {seed % 3}", seed)


def test_a_full_queue_is_429(start: Start) -> None:
    server = start("--queue", "1")
    with ThreadPoolExecutor(2) as pool:
        slow = in_background(pool, server, **SLOW)
        assert until(lambda: is_running(server))
        waiting = in_background(pool, server, prompt=PROMPT)
        assert until(lambda: server.metrics()["arcflow_queue_depth"] == 1)
        refused = server.generate(prompt=PROMPT)
        assert refused.status == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["code"] == "queue_full"
        assert server.metrics()['arcflow_rejected_total{reason="queue_full"}'] == 1
        assert server.get("/health").status == 200
        server.close()
        assert isinstance(slow.exception(), OSError) and isinstance(waiting.exception(), OSError)


CLIENT = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
connection.request("POST", sys.argv[2], sys.argv[3], {"Content-Type": "application/json"})
connection.getresponse()
"""


def test_a_client_that_is_killed_frees_its_slot(server: Server) -> None:
    def client() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", CLIENT, str(server.port), GENERATIONS, json.dumps({**SLOW, "n": 10})]
        return subprocess.Popen(command)

    key = 'arcflow_cancelled_total{reason="client_gone"}'
    before = server.metrics()[key]
    running = client()
    assert until(lambda: is_running(server))
    waiting = client()
    assert until(lambda: server.metrics()["arcflow_queue_depth"] == 1)
    for process in (waiting, running):
        process.kill()
        process.wait()
    began = time.monotonic()
    assert until(lambda: not is_running(server), 3)
    assert server.generate(prompt=PROMPT).status == 200
    assert time.monotonic() - began < 3  # both would have been at it for far longer
    assert server.metrics()[key] == before + 2
    assert server.metrics()["arcflow_queue_depth"] == 0
    assert [line["status"] for line in server.log() if line.get("status") == 499] == [499, 499]


def test_a_deadline_is_504(server: Server) -> None:
    began = time.monotonic()
    answer = server.generate(**SLOW, timeout=0.2)
    assert answer.status == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert time.monotonic() - began < 2
    assert until(lambda: not is_running(server), 3)


def test_sigterm_finishes_what_was_accepted(start: Start) -> None:
    server = start("--grace", "60")
    with ThreadPoolExecutor(2) as pool:
        running = in_background(pool, server, **{**SLOW, "n": 2})
        assert until(lambda: is_running(server))
        waiting = in_background(pool, server, prompt=PROMPT, seed=3)
        assert until(lambda: server.metrics()["arcflow_queue_depth"] == 1)
        idle = server.connect()
        assert send(idle, "GET", "/ready").status == 200
        server.process.send_signal(signal.SIGTERM)
        assert until(lambda: send(idle, "GET", "/health").status == 200 and server.get("/ready").status == 503)
        refused = server.generate(prompt=PROMPT)
        assert refused.status == 503
        assert refused.json()["error"]["code"] == "draining"
        assert int(refused.headers["retry-after"]) >= 1
        assert len(pictures(running.result())) == 2
        assert len(pictures(waiting.result())) == 1
    assert server.process.wait(10) == 0
    idle.close()


def test_the_grace_ends(start: Start) -> None:
    server = start("--grace", "0.2")
    with ThreadPoolExecutor(1) as pool:
        running = in_background(pool, server, **SLOW)
        assert until(lambda: is_running(server))
        assert server.stop(10) == 1
        assert running.result().status == 503


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    server = start()
    with ThreadPoolExecutor(1) as pool:
        running = in_background(pool, server, **SLOW)
        assert until(lambda: is_running(server))
        server.process.send_signal(signal.SIGTERM)
        assert until(lambda: server.get("/ready").status == 503)
        assert server.stop(5) == 128 + signal.SIGTERM
        assert isinstance(running.exception(), OSError)


def test_an_idle_server_stops_at_once(start: Start) -> None:
    server = start("--warm-up", "none")
    with contextlib.closing(server.connect()) as idle:
        assert send(idle, "GET", "/health").status == 200
        began = time.monotonic()
        assert server.stop(10) == 0
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--queue", "0"], "--queue"),
        (["--nosuch"], "--nosuch"),
        (["--model", "huge"], "no bundle for 'huge'"),
        (["--library", "/nowhere/libonnxruntime.so"], "/nowhere/libonnxruntime.so"),
        (["--warm-up", "1x1"], "--warm-up"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_bad_options_are_one_line(
    native_build: Path, options: list[str], message: str, onnxruntime_library: Path
) -> None:
    command = [native_build / "arcflow-serve", "--port", "0", "--model", str(BUILT_IN / "tiny-fp32-cpu")]
    done = subprocess.run(
        [*command, "--library", str(onnxruntime_library), *options], capture_output=True, text=True, timeout=60
    )
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert done.returncode == 2
    assert len(errors) == 1
    assert message in errors[0]


def test_a_port_that_is_taken(server: Server, native_build: Path) -> None:
    command = [native_build / "arcflow-serve", "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1 port {server.port}: ")
    assert done.stderr.count("\n") == 1


def test_a_short_soak(native_tree: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "serve_soak.py"
    figures = tmp_path / "soak.json"
    # So short a run says nothing of small growth; the whole one does.
    options = ["--requests", "120", "--warm-up", "60", "--growth", "0.25", "--json", str(figures)]
    environment = {**os.environ, "ARCFLOW_NATIVE_BUILD": str(native_tree)}
    done = subprocess.run(
        [sys.executable, str(script), *options], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(figures.read_text())
    assert measured == json.loads(done.stdout.splitlines()[-1])
    assert (measured["lost"], measured["answered_twice"], measured["images_total"]) == (0, 0, 180)
