"""The repository in a real Triton server, over gRPC and HTTP.

Neither is among the packages that the tests need: ``pip install nvidia-pytriton 'tritonclient[grpc]'``, then this file.
"""

from __future__ import annotations

import json
import queue
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from engines.locate import BUILT_IN
from integrations.triton.__main__ import main
from runtime import Pipeline
from runtime.image import encode_png
from tests.integrations.triton_server import Triton, find_server, run

grpc = pytest.importorskip("tritonclient.grpc", reason="no client of Triton: pip install 'tritonclient[grpc]'")
PROGRAM = find_server()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no tritonserver: pip install nvidia-pytriton"),
]

TINY = BUILT_IN / "tiny-fp16-cpu"
PROMPT = "a smiling face with sunglasses"
KINDS = {"SEED": "UINT64", "WIDTH": "INT32", "HEIGHT": "INT32", "NFE": "INT32", "PARTIAL_IMAGES": "INT32"}
TYPES = {"UINT64": np.uint64, "INT32": np.int32}
OUTPUTS = ("IMAGE", "PNG", "IMAGE_SEED", "ROW", "PARTIAL_INDEX", "SIGMA")
SLOW = {"WIDTH": 128, "HEIGHT": 128, "NFE": 64}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    work = tmp_path_factory.mktemp("triton")
    out = ["--out", str(work / "models"), "--threads", "1"]
    assert main([str(TINY), *out]) == 0
    assert main([str(TINY), *out, "--name", "plain", "--responses", "single", "--host", "python", "--copy"]) == 0
    assert PROGRAM is not None
    with run(PROGRAM, work / "models", work) as running:
        yield running


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open(TINY, threads=1)


def inputs(prompts: list[str], **values: int | list[int]) -> list[Any]:
    made = [grpc.InferInput("PROMPT", [len(prompts), 1], "BYTES")]
    made[0].set_data_from_numpy(np.array([[text.encode()] for text in prompts], dtype=np.object_))
    for name, value in values.items():
        rows = np.broadcast_to(np.array(value, dtype=TYPES[KINDS[name]]).reshape(-1, 1), (len(prompts), 1))
        made.append(grpc.InferInput(name, [len(prompts), 1], KINDS[name]))
        made[-1].set_data_from_numpy(np.ascontiguousarray(rows))
    return made


@dataclass
class Stream:
    """A stream of responses: what came, in order, until the last one or an error."""

    client: Any
    told: queue.Queue[Any]

    def ask(self, prompts: list[str], model: str = "tiny", **values: int | list[int]) -> None:
        wanted = [grpc.InferRequestedOutput(name) for name in OUTPUTS]
        self.client.async_stream_infer(
            model, inputs(prompts, **values), outputs=wanted, enable_empty_final_response=True
        )

    def responses(self) -> list[dict[str, Any]]:
        found = []
        while True:
            result, error = self.told.get(timeout=60)
            if error is not None:
                raise error
            if result.get_response().outputs:
                found.append({name: result.as_numpy(name) for name in OUTPUTS})
            if result.get_response().parameters["triton_final_response"].bool_param:
                return found


@pytest.fixture
def stream(server: Triton) -> Iterator[Stream]:
    told: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        client.start_stream(lambda result, error: told.put((result, error)))
        yield Stream(client, told)
        client.stop_stream()


def expected(pipeline: Pipeline, prompt: str, seed: int) -> bytes:
    made = pipeline.generate(prompt, seed=seed)
    return encode_png(made.images[0], {**made.settings.of_image(0), "scale": 1})


def test_partial_images_stream_before_the_image(stream: Stream, pipeline: Pipeline) -> None:
    stream.ask([PROMPT], SEED=7, PARTIAL_IMAGES=3)
    *partials, last = stream.responses()
    made = pipeline.generate(PROMPT, seed=7, previews=3)
    assert [int(one["PARTIAL_INDEX"][0, 0]) for one in partials] == [0, 1, 2]
    for one, preview in zip(partials, made.previews[0], strict=True):
        np.testing.assert_array_equal(one["IMAGE"][0], preview.image)
        assert one["SIGMA"][0, 0] == np.float32(preview.sigma)
    np.testing.assert_array_equal(last["IMAGE"][0], made.images[0])
    assert last["PNG"][0, 0] == expected(pipeline, PROMPT, 7)
    assert (last["IMAGE_SEED"][0, 0], last["PARTIAL_INDEX"][0, 0], last["SIGMA"][0, 0]) == (7, -1, 0)


def test_rows_may_differ(stream: Stream, pipeline: Pipeline) -> None:
    stream.ask([PROMPT, "a red apple"], SEED=[3, 2**64 - 1], WIDTH=[64, 96], HEIGHT=[64, 32])
    found = {int(one["ROW"][0, 0]): one for one in stream.responses()}
    assert found[0]["PNG"][0, 0] == expected(pipeline, PROMPT, 3)
    other = pipeline.generate("a red apple", seed=2**64 - 1, width=96, height=32)
    np.testing.assert_array_equal(found[1]["IMAGE"][0], other.images[0])


def test_bad_inputs_are_told_why(stream: Stream) -> None:
    for values, message in (
        ({"WIDTH": 33}, "width is 33 px; it must be a multiple of 16 from 32 to 128"),
        ({"NFE": 65}, "nfe is 65; it must be from 1 to 64"),
        ({"PARTIAL_IMAGES": 9}, "PARTIAL_IMAGES is 9"),
    ):
        stream.ask([PROMPT], **values)
        with pytest.raises(grpc.InferenceServerException, match=message):
            stream.responses()
        # The stream goes on: the response that ends the request may still be on its way.
        time.sleep(0.2)
        while not stream.told.empty():
            stream.told.get()
    stream.ask([" "])
    with pytest.raises(grpc.InferenceServerException, match="the prompt is empty"):
        stream.responses()


def test_a_request_that_is_cancelled_ends(server: Triton, stream: Stream) -> None:
    """Sixteen of the largest images; who comes after does not wait for them."""
    stream.ask([PROMPT] * 4, SEED=1, **SLOW)
    began = time.monotonic()
    stream.responses()
    alone = time.monotonic() - began
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        client.start_stream(lambda result, error: None)
        for _ in range(2):
            client.async_stream_infer("tiny", inputs([PROMPT] * 16, SEED=1, **SLOW))
        time.sleep(0.5)
        client.stop_stream(cancel_requests=True)
    began = time.monotonic()
    stream.ask([PROMPT], SEED=1)
    assert len(stream.responses()) == 1
    waited = time.monotonic() - began
    assert waited < alone, f"waited {waited:.1f} s; 4 of the 32 images take {alone:.1f} s"


def test_requests_are_joined(server: Triton, pipeline: Pipeline) -> None:
    """Triton's statistics say that there were fewer executions than requests; pixels may differ by one step."""
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:

        def one(j: int) -> Any:
            return client.infer("plain", inputs([PROMPT], SEED=j)).as_numpy("IMAGE")[0]

        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(one, range(32)))
        end = time.monotonic() + 10
        while True:  # They follow the answers.
            (found,) = client.get_inference_statistics("plain").model_stats
            if found.inference_count >= 32 or time.monotonic() > end:
                break
            time.sleep(0.1)
    assert found.inference_count == 32
    assert found.execution_count < 32
    for j, image in enumerate(images):
        assert abs(image.astype(int) - pipeline.generate(PROMPT, seed=j).images[0]).max() <= 1


def test_one_answer_over_plain_http(server: Triton, pipeline: Pipeline) -> None:
    """Outputs in JSON; the model is the one that holds a copy of its bundle."""
    assert _post(server, "plain", PROMPT=[PROMPT, "a red apple"], SEED=[3, 4]).shape == (2, 64, 64, 3)
    image = _post(server, "plain", PROMPT=[PROMPT], SEED=[3])[0]
    np.testing.assert_array_equal(image, pipeline.generate(PROMPT, seed=3).images[0])
    with pytest.raises(urllib.error.HTTPError) as wrong:
        _post(server, "plain", PROMPT=[PROMPT], PARTIAL_IMAGES=[1])
    assert "--responses decoupled" in wrong.value.read().decode()


def _post(server: Triton, model: str, **columns: list[Any]) -> Any:
    kinds = {**KINDS, "PROMPT": "BYTES"}
    body = {
        "inputs": [
            {"name": name, "shape": [len(column), 1], "datatype": kinds[name], "data": column}
            for name, column in columns.items()
        ],
        "outputs": [{"name": "IMAGE"}],
    }
    url = f"http://127.0.0.1:{server.http}/v2/models/{model}/infer"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60) as answer:
        (output,) = json.loads(answer.read())["outputs"]
    return np.array(output["data"], dtype=np.uint8).reshape(output["shape"])


def test_the_native_core_is_taken_where_it_is_installed(server: Triton) -> None:
    pytest.importorskip("arcflow_native")
    log = server.log.read_text(errors="replace")
    assert "host native" in log
    assert "host python" in log
