"""What the tests of ``arcflow-serve`` share: requests, waiting, and what an answer holds."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from benchmarks.serving import Answer, Server

PROMPT = "a dark ankle boot"
SLOW: dict[str, Any] = {"prompt": PROMPT, "n": 10, "size": "64x64", "nfe": 64}
"""Seconds of work: ten of the largest images with the most evaluations."""

Start = Callable[..., Server]


def images(answer: Answer) -> list[bytes]:
    assert answer.status == 200, answer.body
    return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]


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
