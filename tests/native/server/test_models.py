"""Two models in one ``arcflow-serve``: names, limits, queues, metrics, and how both end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.serving import Server
from engines.locate import BUILT_IN
from engines.schema import Limits, Range
from runtime import Pipeline
from tests.native.server.serving import PROMPT, SLOW, Start, ask, images, in_background, is_running, until, waiting_in
from tests.runtime import small_bundle

SIDE = Range(128, 128, 256)


@pytest.fixture(scope="module")
def sketch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second bundle, with other weights and other sizes."""
    folder = tmp_path_factory.mktemp("sketch") / "sketch-fp32-cpu"
    limits = Limits(Range(1, 1, 4), SIDE, SIDE, Range(12, 12, 12), 8)
    return small_bundle.build(folder, model="sketch", limits=limits).root


@pytest.fixture(scope="module")
def pair(start: Start, sketch: Path) -> Server:
    options = ["--model", str(sketch), "--alias", "gpt-image-1=sketch", "--warm-up", "usual,96x96"]
    return start(*options, "--queue", "1", "--queue-per-caller", "2")


def test_each_model_has_its_names_and_limits(pair: Server) -> None:
    listed = pair.get("/v1/models").json()["data"]
    assert [one["id"] for one in listed] == ["tiny", "sketch", "gpt-image-1"]
    assert [one["width"]["max"] for one in listed] == [128, 256, 256]
    assert pair.get("/v1/models/sketch-fp32-cpu").json()["bundle"] == "sketch-fp32-cpu"
    for fields, status in (
        ({"size": "64x64"}, 200),
        ({"size": "256x128"}, 400),
        ({"size": "256x128", "model": "sketch"}, 200),
        ({"size": "64x64", "model": "gpt-image-1"}, 400),
    ):
        assert pair.generate(prompt=PROMPT, **fields).status == status, fields
    missing = pair.generate(prompt=PROMPT, model="dall-e-3").json()["error"]
    assert missing["code"] == "model_not_found"
    assert missing["message"].endswith("this server has tiny, sketch, gpt-image-1")
    ready = [line for line in pair.log() if line["event"] == "ready"]
    assert [(one["model"], one["devices"], one["workers"]) for one in ready] == [
        ("tiny-fp16-cpu", 1, 1),
        ("sketch-fp32-cpu", 1, 1),
    ]


def test_each_model_makes_its_own_images(pair: Server, pipeline: Pipeline, sketch: Path, tmp_path: Path) -> None:
    other = Pipeline.open(sketch, threads=1)
    for fields, model, python in (({}, "tiny", pipeline), ({"model": "gpt-image-1"}, "sketch", other)):
        key = f'arcflow_images_total{{model="{model}"}}'
        before = pair.metrics()[key]
        answer = pair.generate(prompt=PROMPT, seed=7, **fields)
        assert answer.json()["model"] == model
        assert pair.metrics()[key] == before + 1
        python.generate(PROMPT, seed=7).save(tmp_path / f"{model}.png")
        assert images(answer) == [(tmp_path / f"{model}.png").read_bytes()]
    assert until(lambda: any((line["event"], line.get("model")) == ("request", "sketch") for line in pair.log()))
    builds = [name for name in pair.metrics() if name.startswith("arcflow_build_info{")]
    assert [one.partition('model="')[2].partition('"')[0] for one in builds] == ["tiny", "sketch"]


def test_each_model_has_its_queue_and_callers_have_one_limit(pair: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        slow = in_background(pool, pair, **{**SLOW, "n": 2})
        assert until(lambda: is_running(pair))
        waiting = in_background(pool, pair, prompt=PROMPT)
        assert until(lambda: waiting_in(pair) == 1)
        mine = ask(pair, {"prompt": PROMPT, "model": "sketch"})
        assert (mine.status, mine.json()["error"]["code"]) == (429, "too_many_requests")
        full = ask(pair, {"prompt": PROMPT}, address="127.0.0.2")
        assert (full.status, full.json()["error"]["code"]) == (429, "queue_full")
        assert ask(pair, {"prompt": PROMPT, "model": "sketch"}, address="127.0.0.2").status == 200
        assert not slow.done()
        assert slow.result().status == waiting.result().status == 200


@pytest.mark.parametrize(("grace", "code", "status"), [("60", 0, 200), ("0.1", 1, 503)])
def test_the_second_model_ends_as_the_first_does(
    native_build: Path, onnxruntime_library: Path, sketch: Path, grace: str, code: int, status: int
) -> None:
    models = ["--model", str(sketch), "--model", str(BUILT_IN / "tiny-fp16-cpu")]
    options = [*models, "--library", str(onnxruntime_library), "--threads", "1", "--warm-up", "none"]
    with (
        Server(native_build / "arcflow-serve", [*options, "--grace", grace]) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        running = in_background(pool, server, **{**SLOW, "n": 2}, model="tiny")
        assert until(lambda: is_running(server))
        assert server.stop() == code
        assert running.result().status == status
