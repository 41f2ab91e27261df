"""Whom ``arcflow-serve`` answers, what they may ask for, and how they share it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.serving import GENERATIONS, Server
from tests.native.server.serving import PROMPT, SLOW, Start, ask, images, is_running, until

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def key_file(folder: Path, *lines: str) -> Path:
    path = folder / "keys"
    path.write_text("# name, SHA-256, limits\n\n" + "".join(f"{line}\n" for line in lines))
    return path


def entry(name: str, key: str, limits: str = "") -> str:
    return f"{name} {hashlib.sha256(key.encode()).hexdigest()} {limits}"


@pytest.fixture(scope="module")
def guarded(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Server:
    keys = key_file(
        tmp_path_factory.mktemp("keys"),
        entry("ann", "key-a"),
        entry("ben", "key-b"),
        entry("cy", "key-c", "requests=1 images=2 nfe=3"),
    )
    options = ["--api-keys", str(keys), "--allowed-host", "127.0.0.1", "--cors", "https://example.org"]
    return start(*options, "--alias", "gpt-image-1=tiny")


def test_one_large_request_does_not_hold_up_another_caller(start: Start) -> None:
    server = start()
    with ThreadPoolExecutor(2) as pool:
        large = [pool.submit(ask, server, SLOW) for _ in range(2)]
        assert until(lambda: is_running(server))
        assert len(images(ask(server, {"prompt": PROMPT, "seed": 7}, address="127.0.0.2"))) == 1
        assert not any(one.done() for one in large)
        server.close()
        assert all(isinstance(one.exception(), OSError) for one in large)


def test_the_owners_of_keys_take_turns_and_have_limits(guarded: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(ask, guarded, {**SLOW, "n": 3}, "key-a")
        assert until(lambda: is_running(guarded))
        assert ask(guarded, {"prompt": PROMPT}, "key-b").status == 200
        assert not large.done()
        assert ask(guarded, {"prompt": PROMPT, "n": 2, "nfe": 3}, "key-c").status == 200
        assert len(images(large.result())) == 3
    for _ in range(3):  # a stream is over for its caller once its last event is there
        assert b"image_generation.completed" in ask(guarded, {"prompt": PROMPT, "stream": True}, "key-c").body
    for fields in ({"n": 3}, {"nfe": 4}):
        refused = ask(guarded, {"prompt": PROMPT, **fields}, "key-c")
        assert (refused.status, refused.json()["error"]["param"]) == (400, next(iter(fields)))


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic a2V5LWE="}])
def test_without_a_key_it_is_401(guarded: Server, header: dict[str, str]) -> None:
    for method, path in (("POST", GENERATIONS), ("GET", "/v1/models"), ("GET", "/v1/models/tiny")):
        answer = guarded.request(method, path, b"{}", {"Content-Type": "application/json", **header})
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="arcflow"'
        error = answer.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert guarded.get("/health").status == guarded.get("/ready").status == guarded.get("/metrics").status == 200


def test_the_log_tells_the_key_and_the_trace(guarded: Server) -> None:
    headers = {"Authorization": "Bearer key-a", "traceparent": TRACE, "x-request-id": "traced"}
    assert guarded.request("GET", "/v1/models", headers=headers).status == 200
    assert until(lambda: any(line.get("request_id") == "traced" for line in guarded.log()))
    line = next(line for line in guarded.log() if line.get("request_id") == "traced")
    assert (line["key"], line["trace_id"], line["parent_id"]) == ("ann", TRACE[3:35], TRACE[36:52])
    text = json.dumps(guarded.log())
    assert "key-a" not in text


def test_models_by_name(guarded: Server) -> None:
    headers = {"Authorization": "Bearer key-c"}
    listed = guarded.request("GET", "/v1/models", headers=headers).json()["data"]
    assert [one["id"] for one in listed] == ["tiny", "gpt-image-1"]
    assert listed[1]["nfe"] == {"min": 1, "usual": 2, "max": 3}
    one = guarded.request("GET", "/v1/models/gpt-image-1", headers=headers)
    assert one.json() == listed[1]
    missing = guarded.request("GET", "/v1/models/dall-e-3", headers=headers)
    assert (missing.status, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert ask(guarded, {"prompt": PROMPT, "model": "gpt-image-1"}, "key-a").json()["model"] == "tiny"
    metrics = guarded.metrics()
    assert metrics['arcflow_requests_total{route="/v1/models/{id}",code="404"}'] == 1


def test_hosts_and_pages(guarded: Server) -> None:
    headers = {"Authorization": "Bearer key-a"}
    strange = guarded.request("GET", "/v1/models", headers={**headers, "Host": "evil.example"})
    assert (strange.status, strange.json()["error"]["code"]) == (400, "invalid_host")
    assert guarded.request("GET", "/health", headers={"Host": "10.0.0.7:8080"}).status == 200
    ours = {"Origin": "https://example.org"}
    asked = guarded.request("OPTIONS", GENERATIONS, headers={**ours, "Access-Control-Request-Method": "POST"})
    assert asked.status == 204
    assert asked.headers["access-control-allow-methods"] == "POST"
    assert "Authorization" in asked.headers["access-control-allow-headers"]
    answer = guarded.request("GET", "/v1/models", headers={**headers, **ours})
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    fields = json.dumps({"prompt": PROMPT, "stream": True}).encode()
    typed = {**headers, **ours, "Content-Type": "application/json", "x-request-id": "streamed"}
    streamed = guarded.request("POST", GENERATIONS, fields, typed)
    assert streamed.headers["access-control-allow-origin"] == "https://example.org"
    assert (streamed.headers["x-request-id"], streamed.headers["cache-control"]) == ("streamed", "no-store")
    other = guarded.request("GET", "/v1/models", headers={**headers, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    assert other.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "it holds no key"),
        (("ann 1234",), "line 3: the SHA-256 of a key has 64 hexadecimal digits"),
        ((entry("ann", "a"), entry("ann", "b")), "line 4: the name 'ann' stands there twice"),
        ((entry("ann", "a", "images=0"),), "line 3: 'images=0' is no limit"),
    ],
)
def test_a_bad_file_of_keys_is_one_line(
    native_build: Path, tmp_path: Path, lines: tuple[str, ...], message: str
) -> None:
    path = key_file(tmp_path, *lines)
    command = [native_build / "arcflow-serve", "--port", "0", "--api-keys", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}: {message}")
    assert done.stderr.count("\n") == 1
