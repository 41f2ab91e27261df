"""How requests to ``arcflow-serve`` end before their time, how the server itself does, and how it fails to start."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.serving import GENERATIONS, Server, send
from engines.locate import BUILT_IN
from tests.engines.damages import cached
from tests.native.server.serving import (
    PROMPT,
    SLOW,
    Start,
    images,
    in_background,
    is_running,
    logged,
    until,
    waiting_in,
)


def test_a_full_queue_is_429(start: Start) -> None:
    server = start("--queue", "1")
    with ThreadPoolExecutor(2) as pool:
        slow = in_background(pool, server, **SLOW)
        assert until(lambda: is_running(server))
        waiting = in_background(pool, server, prompt=PROMPT)
        assert until(lambda: waiting_in(server) == 1)
        refused = server.generate(prompt=PROMPT)
        assert refused.status == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["code"] == "queue_full"
        assert server.metrics()['arcflow_rejected_total{reason="queue_full"}'] == 1
        assert server.get("/health").status == 200
        server.close()
        assert isinstance(slow.exception(), OSError) and isinstance(waiting.exception(), OSError)


def test_what_would_be_too_late_is_429_at_once(start: Start) -> None:
    server = start()
    assert server.generate(prompt=PROMPT, n=1).status == 200  # its pace is known
    with ThreadPoolExecutor(1) as pool:
        slow = in_background(pool, server, **SLOW)
        assert until(lambda: is_running(server))
        refused = server.generate(prompt=PROMPT, timeout=0.01)
        assert refused.status == 429
        assert refused.json()["error"]["code"] == "too_late"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert server.metrics()['arcflow_rejected_total{reason="too_late"}'] == 1
        server.close()
        assert isinstance(slow.exception(), OSError)


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
    assert until(lambda: waiting_in(server) == 1)
    for process in (waiting, running):
        process.kill()
        process.wait()
    began = time.monotonic()
    assert until(lambda: not is_running(server), 3)
    assert server.generate(prompt=PROMPT).status == 200
    assert time.monotonic() - began < 3  # both would have been at it for far longer
    assert server.metrics()[key] == before + 2
    assert waiting_in(server) == 0
    assert len(logged(server, 2, status=499)) == 2


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
        assert until(lambda: waiting_in(server) == 1)
        idle = server.connect()
        assert send(idle, "GET", "/ready").status == 200
        server.process.send_signal(signal.SIGTERM)
        assert until(lambda: send(idle, "GET", "/health").status == 200 and server.get("/ready").status == 503)
        refused = server.generate(prompt=PROMPT)
        assert refused.status == 503
        assert refused.json()["error"]["code"] == "draining"
        assert int(refused.headers["retry-after"]) >= 1
        assert len(images(running.result())) == 2
        assert len(images(waiting.result())) == 1
    assert server.process.wait(10) == 0
    idle.close()


def test_the_grace_ends(start: Start) -> None:
    server = start("--grace", "0.2")
    with ThreadPoolExecutor(1) as pool:
        running = in_background(pool, server, **SLOW)
        assert until(lambda: is_running(server))
        assert server.stop(10) == 1
        assert running.result().status == 503


def test_a_delay_before_it_drains(start: Start) -> None:
    server = start("--drain-delay", "1", "--warm-up", "none")
    server.process.send_signal(signal.SIGTERM)
    assert until(lambda: server.get("/ready").status == 503, 0.5)
    assert server.generate(prompt=PROMPT).status == 200  # callers who have not heard of it
    assert server.get("/health").status == 200
    assert server.process.wait(10) == 0


def test_a_signal_a_second_later_ends_it_at_once(start: Start) -> None:
    server = start()
    with ThreadPoolExecutor(1) as pool:
        running = in_background(pool, server, **SLOW)
        assert until(lambda: is_running(server))
        server.process.send_signal(signal.SIGTERM)
        assert until(lambda: server.get("/ready").status == 503)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGHUP)
        time.sleep(1.1)
        assert server.process.poll() is None  # the two were one, and a terminal's end is none
        assert server.stop(5) == 128 + signal.SIGTERM
        assert isinstance(running.exception(), OSError)


def test_an_idle_server_stops_at_once(start: Start) -> None:
    server = start("--warm-up", "none")
    with contextlib.closing(server.connect()) as idle:
        assert send(idle, "GET", "/health").status == 200
        began = time.monotonic()
        assert server.stop(10) == 0
        assert time.monotonic() - began < 3


def test_a_bundle_in_a_cache(start: Start, server: Server, tmp_path: Path) -> None:
    folder = cached(BUILT_IN / "tiny-fp16-cpu", tmp_path / "hub")
    linked = start("--allow-links", "--warm-up", "none", model=folder)
    request = {"prompt": PROMPT, "seed": 5}
    assert images(linked.generate(**request)) == images(server.generate(**request))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--queue", "0"], "--queue"),
        (["--nosuch"], "--nosuch"),
        (["--model", "huge"], "no bundle for 'huge'"),
        (["--model", "tiny"], "--model: two of the models are the bundle tiny-fp16-cpu"),
        (["--device", "0,1"], "--device 0,1: tiny-fp16-cpu runs on the CPU, which is device 0 alone"),
        (["--device", "1,1"], "--device: 1 is there twice"),
        (["--library", "/nowhere/libonnxruntime.so"], "/nowhere/libonnxruntime.so"),
        (["--warm-up", "1x1"], "--warm-up"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1 port 0: Cannot assign requested address"),
        (["--host", "no host"], "cannot listen on no host port 0: Host not found"),
        (["--alias", "gpt-image-1=flux"], "--alias gpt-image-1=flux: this server has tiny, not flux"),
        (["--alias", "flux"], "--alias: flux is not NAME=MODEL"),
        (["--cors", "example.org"], "--cors: example.org is no origin"),
        (["--api-keys", "/nowhere/keys"], "cannot read /nowhere/keys: No such file or directory"),
        (["--timeout", "nan"], "--timeout: nan is no number"),
    ],
)
def test_bad_options_are_one_line(
    native_build: Path, options: list[str], message: str, onnxruntime_library: Path
) -> None:
    command = [native_build / "arcflow-serve", "--port", "0", "--model", str(BUILT_IN / "tiny-fp16-cpu")]
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
