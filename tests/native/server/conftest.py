"""A server on the embedded default, and the same model in Python."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving import Server
from engines.locate import BUILT_IN
from runtime import Pipeline
from tests.native.server.serving import Start


@pytest.fixture(scope="module")
def start(native_build: Path, onnxruntime_library: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def run(*options: str, model: Path = BUILT_IN / "tiny-fp16-cpu", user: int | None = None) -> Server:
            wanted = [
                "--threads",
                "1",
                "--library",
                str(onnxruntime_library),
                "--model",
                str(model),
            ]
            return stack.enter_context(Server(native_build / "arcflow-serve", [*wanted, *options], user=user))

        yield run


@pytest.fixture(scope="module")
def server(start: Start) -> Server:
    return start()


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open(BUILT_IN / "tiny-fp16-cpu", threads=1)
