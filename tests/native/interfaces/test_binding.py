"""``Pipeline.open(..., host="native")``: the same results, errors and manners as the Python host."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import arcflow_native
import numpy as np
import pytest

from engines.errors import BundleError
from engines.locate import BUILT_IN
from foundation import noise
from runtime.errors import BackendError, RequestError
from runtime.hosts.native import NativeHost, onnxruntime_library
from runtime.pipeline import Pipeline
from runtime.result import Generation, Step
from tests.engines.damages import cached

ROOT = Path(__file__).parents[3]
TINY = BUILT_IN / "tiny-fp16-cpu"
PROMPT = "a smiling face with sunglasses"


@pytest.fixture(scope="module")
def native() -> Pipeline:
    pipeline = Pipeline.open("tiny", threads=1, host="native")
    assert isinstance(pipeline.host, NativeHost)
    return pipeline


@pytest.fixture(scope="module")
def python() -> Pipeline:
    return Pipeline.open("tiny", threads=1)


def assert_same(one: Generation, other: Generation) -> None:
    assert len(one.images) == len(other.images)
    for mine, theirs in zip(one.images, other.images, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_allclose(one.latents, other.latents, rtol=1e-5, atol=1e-6)
    assert one.settings == other.settings
    assert one.warnings == other.warnings
    assert [len(frames) for frames in one.previews] == [len(frames) for frames in other.previews]
    for mine, theirs in zip(one.previews, other.previews, strict=True):
        for left, right in zip(mine, theirs, strict=True):
            assert left.sigma == right.sigma
            np.testing.assert_array_equal(left.image, right.image)


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": 5},
        {"seed": (1 << 64) - 1, "num_images": 3, "nfe": 4, "previews": 5},
        {"seed": 1, "width": 96, "height": 32, "previews": 2},
        {"seed": 2, "num_images": 9},
    ],
)
def test_both_hosts_paint_the_same(native: Pipeline, python: Pipeline, arguments: dict[str, int]) -> None:
    limits = native.manifest.limits
    for name, limit in (("width", limits.width), ("height", limits.height)):
        if name in arguments:
            arguments[name] = min(max(arguments[name], limit.min), limit.max)
    for prompt in (PROMPT, [PROMPT, "picture of a rose, 红苹果 🍎"]):
        assert_same(native.generate(prompt, **arguments), python.generate(prompt, **arguments))


def test_seeds_and_frames_are_each_images_own(native: Pipeline, python: Pipeline) -> None:
    told: dict[str, list[tuple[int, float]]] = {"native": [], "python": []}
    made = [
        pipeline.generate(
            [PROMPT, "a rose"],
            seed=[9, 2**64 - 1],
            previews=2,
            on_preview=lambda image, frame, name=name: told[name].append((image, frame.sigma)),  # type: ignore[misc]
        )
        for name, pipeline in (("native", native), ("python", python))
    ]
    assert_same(*made)
    assert sorted(told["native"]) == sorted(told["python"])
    assert len(told["native"]) == 4


def test_a_cut_prompt_is_warned_of(native: Pipeline, python: Pipeline) -> None:
    prompt = "a very long snake " * 100
    assert native.generate(prompt).warnings == python.generate(prompt).warnings != ()


def test_results_are_the_caller_s(native: Pipeline) -> None:
    first = native.generate(PROMPT, seed=1)
    kept = first.images[0].copy(), first.latents.copy()
    native.generate(PROMPT, seed=2)
    np.testing.assert_array_equal(first.images[0], kept[0])
    np.testing.assert_array_equal(first.latents, kept[1])
    first.images[0][:] = 0  # writable


def test_noise_is_bit_equal(native: Pipeline) -> None:
    mine = arcflow_native.noise(12345678901234567890, 4096)
    theirs = noise.normal(12345678901234567890, 1024, 4).reshape(-1)
    np.testing.assert_array_equal(mine.view(np.uint32), theirs.view(np.uint32))
    np.testing.assert_array_equal(arcflow_native.noise(12345678901234567890, 96, 4000), mine[4000:])


def test_steps_are_reported_in_the_calling_thread(native: Pipeline, python: Pipeline) -> None:
    def steps(pipeline: Pipeline) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []

        def on_step(step: Step) -> None:
            assert threading.current_thread() is caller
            found.append((step.index, step.total, step.first_image, step.sigma_from, step.sigma_to))

        caller = threading.current_thread()
        pipeline.generate(PROMPT, num_images=9, nfe=3, on_step=on_step)
        return found

    assert steps(native) == steps(python)
    result: list[object] = []
    thread = threading.Thread(target=lambda: result.append(steps(native)))
    thread.start()
    thread.join()
    assert result == [steps(python)]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_what_a_callback_raises_ends_the_request(native: Pipeline, kind: type[BaseException]) -> None:
    def on_step(step: Step) -> None:
        raise kind("enough")

    with pytest.raises(kind, match="enough"):
        native.generate(PROMPT, on_step=on_step)
    native.generate(PROMPT)  # still usable


@pytest.mark.parametrize(
    "arguments",
    [{"prompt": ""}, {"prompt": "a\0b"}, {"prompt": PROMPT, "nfe": 0}, {"prompt": PROMPT, "width": 17}, {"prompt": []}],
)
def test_requests_are_refused_in_the_same_words(
    native: Pipeline, python: Pipeline, arguments: dict[str, object]
) -> None:
    with pytest.raises(RequestError) as theirs:
        python.generate(**arguments)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=re.escape(str(theirs.value))):
        native.generate(**arguments)  # type: ignore[arg-type]


def test_an_altered_file_is_refused_in_the_same_words(tmp_path: Path) -> None:
    folder = tmp_path / TINY.name
    shutil.copytree(TINY, folder)
    path = folder / "backbone.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    messages = []
    for host in ("python", "native"):
        with pytest.raises(BundleError) as error:
            Pipeline.open(folder, host=host)  # type: ignore[arg-type]
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_a_bundle_in_a_cache(tmp_path: Path, python: Pipeline) -> None:
    folder = cached(TINY, tmp_path / "hub")
    with pytest.raises(arcflow_native.NativeError, match="or run it with --allow-links"):
        arcflow_native.Model(str(folder))
    linked = Pipeline.open(folder, threads=1, host="native", allow_links=True)
    assert_same(linked.generate(PROMPT, seed=5), python.generate(PROMPT, seed=5))


def test_a_library_that_is_none_is_a_backend_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "libonnxruntime.so"
    library.write_bytes(b"not a library")
    monkeypatch.setenv("ARCFLOW_ONNXRUNTIME", str(library))
    with pytest.raises(BackendError, match=re.escape(str(library))):
        Pipeline.open("tiny", host="native")


def test_a_host_that_is_none_is_refused() -> None:
    with pytest.raises(RequestError, match="python, native"):
        Pipeline.open("tiny", host="gpu")  # type: ignore[arg-type]


def test_threads_share_a_model(native: Pipeline) -> None:
    alone = [native.generate(PROMPT, seed=seed).images[0] for seed in range(6)]
    together: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        together[seed] = native.generate(PROMPT, seed=seed).images[0]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, image in enumerate(alone):
        np.testing.assert_array_equal(together[seed], image)


def test_the_interpreter_runs_on_meanwhile(native: Pipeline) -> None:
    """Another thread counts while a request runs: its lock is not held."""
    counts = 0
    done = threading.Event()

    def count() -> None:
        nonlocal counts
        while not done.is_set():
            counts += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    before = counts
    native.generate(PROMPT, num_images=32, nfe=8)
    during = counts - before
    done.set()
    thread.join()
    assert during > 5


def test_a_token_cancels_from_another_thread() -> None:
    model = arcflow_native.Model(str(TINY), library=str(onnxruntime_library()), threads=1)
    token = arcflow_native.Cancel()
    timer = threading.Timer(0.2, token.cancel)
    timer.start()
    start = time.monotonic()
    with pytest.raises(arcflow_native.NativeError) as error:
        model.generate([PROMPT], num_images=1024, nfe=64, cancel=token)
    assert error.value.code == 5
    assert time.monotonic() - start < 5
    timer.join()


def test_a_deadline_ends_a_request() -> None:
    model = arcflow_native.Model(str(TINY), library=str(onnxruntime_library()), threads=1)
    start = time.monotonic()
    with pytest.raises(arcflow_native.NativeError) as error:
        model.generate([PROMPT], num_images=1024, nfe=64, timeout=0.2)
    assert error.value.code == 6
    assert time.monotonic() - start < 5


INTERRUPTED = """
import sys, time
from runtime.pipeline import Pipeline
pipeline = Pipeline.open("tiny", threads=1, host="native")
pipeline.generate("a dog")
print("ready", flush=True)
try:
    pipeline.generate("a dog", num_images=1024, nfe=64)
except KeyboardInterrupt:
    pipeline.generate("a dog")
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_a_request_and_leaves_the_pipeline_usable() -> None:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert process.wait(timeout=30) == 0


def test_the_command_paints_the_same_file(tmp_path: Path) -> None:
    files = []
    for host in ("python", "native"):
        out = tmp_path / f"{host}.png"
        command = [sys.executable, "-m", "runtime.generate", PROMPT, "--seed", "7", "--host", host, "--out", str(out)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        files.append(out.read_bytes())
    assert files[0] == files[1]


@pytest.fixture
def without_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if arcflow-native were not installed."""
    monkeypatch.setitem(sys.modules, "arcflow_native", None)
    yield


@pytest.mark.usefixtures("without_module")
def test_without_the_package_the_error_says_how_to_install_it() -> None:
    with pytest.raises(BackendError, match="pip install"):
        Pipeline.open("tiny", host="native")


def test_the_command_tells_where_the_package_is() -> None:
    for option, name in (
        ("--cmake-dir", "ArcFlowConfig.cmake"),
        ("--include-dir", "arcflow/arcflow.h"),
        ("--library", ""),
        ("--onnxruntime", ""),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "runtime.native", option], cwd=ROOT, check=True, capture_output=True, text=True
        )
        assert (Path(done.stdout.strip()) / name).exists()
    assert arcflow_native.cmake_dir().is_dir()
    assert arcflow_native.library_path().is_file()


def test_versions_agree() -> None:
    own = tomllib.loads((ROOT / "runtime/native/python/pyproject.toml").read_text())["project"]["version"]
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cmake = re.search(r"project\(ArcFlow VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())
    assert cmake is not None
    assert {own, whole["version"], cmake[1], arcflow_native.library_version()} == {own}
    assert whole["optional-dependencies"]["native"] == [f"arcflow-native=={own}"]


def test_nothing_is_written_to_the_streams() -> None:
    source = 'from runtime.pipeline import Pipeline; Pipeline.open("tiny", host="native").generate("a dog")'
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, env=dict(os.environ), check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("host", ["python", "native"])
def test_every_host_tells_its_sizes_and_its_memory_and_closes(host: Literal["python", "native"]) -> None:
    with Pipeline.open("tiny", threads=1, host=host) as pipeline:
        sizes = pipeline.sizes([PROMPT, "a rose"], num_images=2, width=128)
        expected = {"batch": 4, "levels": 8, "image_tokens": 32, "rows": 8, "columns": 16, "text_tokens": 12}
        assert sizes["backbone"] == sizes["conditioner"] == expected
        assert sizes["clip"]["text_tokens"] == 24
        weights = sum((TINY / f"{name}.onnx").stat().st_size for name in pipeline.manifest.networks)
        assert pipeline.memory() == {"weights": weights}
        assert len(pipeline.generate(PROMPT).images) == 1
    pipeline.close()
    assert pipeline.memory() == {"weights": 0}
    with pytest.raises(BackendError, match="the pipeline is closed: open it again"):
        pipeline.generate(PROMPT)
