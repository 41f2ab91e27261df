"""What the tests of ``arcflow-serve`` share: requests, waiting, and what an answer holds."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from benchmarks.serving import GENERATIONS, Answer, Server, send, summed

PROMPT = "a smiling face with sunglasses"
SLOW: dict[str, Any] = {"prompt": PROMPT, "n": 10, "size": "128x128", "nfe": 64}
"""Seconds of work: ten of the largest images with the most evaluations."""

Start = Callable[..., Server]


def images(answer: Answer) -> list[bytes]:
    assert answer.status == 200, answer.body
    return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]


def ask(server: Server, fields: Mapping[str, Any], key: str = "", address: str = "127.0.0.1") -> Answer:
    """A request for images from one of this machine's addresses."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60, source_address=(address, 0))
    with contextlib.closing(connection):
        return send(connection, "POST", GENERATIONS, json.dumps(fields).encode(), headers)


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def logged(server: Server, count: int = 1, **fields: object) -> list[dict[str, Any]]:
    """The log's lines that have these fields, once there are so many: answers do not wait for the log."""

    def found() -> list[dict[str, Any]]:
        return [line for line in server.log() if fields.items() <= line.items()]

    assert until(lambda: len(found()) >= count), f"{len(found())} lines of {count} with {fields}"
    return found()


def in_background(pool: ThreadPoolExecutor, server: Server, **fields: object) -> Future[Answer]:
    return pool.submit(lambda: server.generate(**fields))


def is_running(server: Server) -> bool:
    return summed(server.metrics(), "arcflow_in_flight_images") > 0


def waiting_in(server: Server) -> float:
    return summed(server.metrics(), "arcflow_queue_depth")
