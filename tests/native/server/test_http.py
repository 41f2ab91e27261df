"""What ``arcflow-serve`` answers over HTTP: paths, methods, bodies that are refused, ids, metrics."""

from __future__ import annotations

import contextlib
import socket

import pytest

from benchmarks.serving import GENERATIONS, Server, send, summed
from tests.native.server.serving import PROMPT, logged


def test_models_health_and_readiness(server: Server) -> None:
    model = server.get("/v1/models").json()["data"][0]
    assert (model["id"], model["object"], model["bundle"]) == ("tiny", "model", "tiny-fp16-cpu")
    assert model["width"] == {"min": 32, "usual": 64, "max": 128}
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
    (line,) = logged(server, event="request", request_id="abc-123")
    assert (line["path"], line["status"]) == ("/health", 200)


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
    assert summed(after, "arcflow_images_total") == summed(before, "arcflow_images_total") + 2
    route = f'arcflow_requests_total{{route="{GENERATIONS}",code="200"}}'
    assert after[route] == before.get(route, 0) + 1
    assert after['arcflow_requests_total{route="other",code="404"}'] >= 1
    buckets = [value for name, value in after.items() if name.startswith("arcflow_batch_size_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == after['arcflow_batch_size_count{model="tiny"}']
    assert after["process_resident_memory_bytes"] == pytest.approx(server.resident_bytes(), rel=0.2)
    assert after["arcflow_ready"] == 1
