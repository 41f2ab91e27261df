"""The library on ONNX Runtime through its C interface: other bundles than the embedded one, tokens, and early ends.

``test_parity.py`` holds the embedded default to Python, image by image.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engines.bundle import open_bundle
from engines.errors import BundleError
from engines.locate import BUILT_IN
from engines.schema import Range
from engines.trust import sealed
from engines.writer import write_bundle
from runtime.errors import BackendError
from runtime.pipeline import Pipeline
from runtime.text import PromptTokenizer, TokenIds
from tests.engines.damages import cached
from tests.export.qwen_export import Exported
from tests.native.interfaces.c_interface import (
    BACKEND_UNAVAILABLE,
    BUNDLE_REJECTED,
    CANCELLED,
    DEADLINE_EXCEEDED,
    INVALID_ARGUMENT,
    Library,
    Made,
    Model,
    StatusError,
)
from tests.runtime import qwen_bundle, small_bundle, small_plans

TINY = BUILT_IN / "tiny-fp16-cpu"
PROMPTS = ["a smiling face with sunglasses", "picture of a pizza", "a red apple"]
QWEN_PROMPTS = ["red", "一颗红色的心 and a sign that says hello 你好, one red heart", "a rose", "red"]


@pytest.fixture(scope="module")
def library(native_library: Path) -> Library:
    return Library(native_library)


@pytest.fixture(scope="module")
def tiny(library: Library, onnxruntime_library: Path) -> Iterator[Model]:
    model = Model(library, TINY, onnxruntime_library)
    yield model
    model.close()


@pytest.fixture(scope="module")
def qwen_folder(exported_qwen: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "small-qwen-fp32-cpu"
    return qwen_bundle.build(folder, exported_qwen, tmp_path_factory.mktemp("work")).root


def encode(folder: Path, prompts: list[str]) -> dict[str, TokenIds]:
    """What Python's tokenizers make of prompts."""
    bundle = open_bundle(folder)
    return {
        name: PromptTokenizer(name, bundle.read(spec.file), spec)(prompts)
        for name, spec in bundle.manifest.tokenizers.items()
    }


def check_same(made: Made, pipeline: Pipeline, prompts: list[str], **arguments: Any) -> None:
    """What Python makes of the same request."""
    generation = pipeline.generate(prompts, **arguments)
    reference = generation.latents.ravel()
    assert np.abs(made.latents - reference).max() <= 1e-5 * np.abs(reference).max()
    np.testing.assert_array_equal(made.rgb8, np.stack(generation.images))


def test_tokens_given_directly_are_as_good_as_prompts(tiny: Model) -> None:
    by_prompt = tiny.generate(PROMPTS, seed=5, num_images=2)
    by_tokens = tiny.generate(tokens=encode(TINY, PROMPTS), seed=5, num_images=2)
    np.testing.assert_array_equal(by_tokens.latents, by_prompt.latents)


def test_a_seed_for_each_picture(tiny: Model) -> None:
    made = tiny.generate(["a red apple"], num_images=3, seeds=[8, 2**64 - 1, 8])
    alone = tiny.generate(["a red apple"], seed=2**64 - 1)
    np.testing.assert_array_equal(made.rgb8[0], made.rgb8[2])
    np.testing.assert_array_equal(made.rgb8[1], alone.rgb8[0])


def test_weights_behind_links(library: Library, onnxruntime_library: Path, qwen_folder: Path, tmp_path: Path) -> None:
    """Data beside a network is handed over in memory: ONNX Runtime itself rejects a link that leads out of a folder."""
    folder = cached(qwen_folder, tmp_path / "hub")
    assert any(network.data for network in open_bundle(folder, allow_links=True).manifest.networks.values())
    with pytest.raises(StatusError, match="is a symbolic link"):
        Model(library, folder, onnxruntime_library)
    model = Model(library, folder, onnxruntime_library, allow_links=True)
    with Pipeline.open(folder, threads=1, allow_links=True) as pipeline:
        check_same(model.generate(QWEN_PROMPTS, seed=3), pipeline, QWEN_PROMPTS, seed=3)
    model.close()


def test_seconds_are_told(tiny: Model) -> None:
    *stages, total = tiny.generate(["a red apple"]).seconds
    assert all(value > 0 for value in stages)
    assert sum(stages) <= total


def test_a_token_that_the_network_does_not_know_is_an_error_and_no_crash(tiny: Model) -> None:
    tokens = encode(TINY, ["a red apple"])
    tokens["t5"].ids[0, 0] = 2**31 - 1
    with pytest.raises(StatusError) as caught:
        tiny.generate(tokens=tokens)
    assert caught.value.code == BACKEND_UNAVAILABLE
    tiny.generate(["a red apple"])


def test_batches_are_as_small_as_the_bundle_says(library: Library, onnxruntime_library: Path, tmp_path: Path) -> None:
    """Eleven images of five different prompts, four at most at a time: text encoders and backbone in batches."""
    manifest = open_bundle(TINY).manifest
    limits = msgspec.structs.replace(manifest.limits, batch=Range(1, 1, 4))
    changed = msgspec.structs.replace(manifest, limits=limits, files=(), digest="")
    files: dict[str, Path | bytes] = {entry.path: TINY / entry.path for entry in manifest.files}
    folder = write_bundle(tmp_path / "tiny-fp16-cpu", changed, files).root
    model = Model(library, folder, onnxruntime_library)
    prompts = [
        "a dog",
        "a rose",
        "a dog",
        "a cat",
        "a banana",
        "dice",
        "a rose",
        "a cat",
        "a dog",
        "a rose",
        "a hat",
    ]
    pipeline = Pipeline.open(folder, threads=1)
    check_same(model.generate(prompts, seed=3), pipeline, prompts, seed=3)
    check_same(model.generate(prompts, nfe=5, width=128, height=32), pipeline, prompts, nfe=5, width=128, height=32)
    model.close()


def test_qwen_image(library: Library, onnxruntime_library: Path, qwen_folder: Path) -> None:
    """Weights beside a network, a template, a mask, padding to the longest of each batch, scales by channel."""
    model = Model(library, qwen_folder, onnxruntime_library)
    pipeline = Pipeline.open(qwen_folder, threads=1)
    requests: list[dict[str, Any]] = [
        {"seed": 3},
        {"seed": 2**64 - 2, "nfe": 3, "width": 16, "height": 80},
        {"num_images": 3},
    ]
    for arguments in requests:
        check_same(model.generate(QWEN_PROMPTS, **arguments), pipeline, QWEN_PROMPTS, **arguments)
    by_tokens = model.generate(tokens=encode(qwen_folder, QWEN_PROMPTS), seed=3)
    np.testing.assert_array_equal(by_tokens.rgb8, model.generate(QWEN_PROMPTS, seed=3).rgb8)
    model.close()


def test_qwen_image_refuses_tokens_that_are_all_template(
    library: Library, onnxruntime_library: Path, qwen_folder: Path
) -> None:
    model = Model(library, qwen_folder, onnxruntime_library)
    tokens = encode(qwen_folder, ["red"])["text"]
    drop = open_bundle(qwen_folder).manifest.tokenizers["text"].drop
    short = TokenIds(tokens.ids[:, :drop].copy(), tokens.mask[:, :drop].copy(), ())
    with pytest.raises(StatusError, match=f"a prompt has {drop} tokens for 'text'; it needs more") as caught:
        model.generate(tokens={"text": short})
    assert caught.value.code == INVALID_ARGUMENT
    model.close()


def test_a_flipped_byte_is_refused_in_any_file(
    library: Library, onnxruntime_library: Path, qwen_folder: Path, tmp_path: Path
) -> None:
    for entry in open_bundle(qwen_folder).manifest.files:
        copy = tmp_path / "small-qwen-fp32-cpu"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(qwen_folder, copy)
        path = copy / entry.path
        path.write_bytes(small_bundle.flip(path.read_bytes(), entry.size // 2))
        with pytest.raises(BundleError) as expected:
            Pipeline.open(copy)
        with pytest.raises(StatusError) as caught:
            Model(library, copy, onnxruntime_library)
        assert (caught.value.code, str(caught.value)) == (BUNDLE_REJECTED, str(expected.value))


def test_onnx_files_for_building_plans_are_refused_in_pythons_words(
    library: Library, onnxruntime_library: Path, tmp_path: Path
) -> None:
    bundle = small_bundle.build(tmp_path / "tiny-fp16-onnx", target="onnx")
    with pytest.raises(BackendError) as expected:
        Pipeline.open(bundle.root)
    with pytest.raises(StatusError) as caught:
        Model(library, bundle.root, onnxruntime_library)
    in_python_alone = " run it by ONNX Runtime on a GPU with --device cuda,"
    assert in_python_alone in str(expected.value)
    words = str(expected.value).replace(in_python_alone, "")
    assert (caught.value.code, str(caught.value)) == (BACKEND_UNAVAILABLE, words)


def test_plans_need_this_machines_seal_before_anything_else(
    library: Library, onnxruntime_library: Path, tmp_path: Path
) -> None:
    foreign = small_plans.build(tmp_path / "foreign" / "tiny-fp16-sm89")
    with pytest.raises(StatusError) as caught:
        Model(library, foreign.root, onnxruntime_library)
    assert caught.value.code == BUNDLE_REJECTED
    own = small_plans.build(tmp_path / "own" / "tiny-fp16-sm89", finish=sealed)
    # Sealed, it goes on to the host: one that is not there, or that finds no device or library.
    with pytest.raises(StatusError, match=r"tensorrt|TensorRT|CUDA") as caught:
        Model(library, own.root, onnxruntime_library)
    assert caught.value.code == BACKEND_UNAVAILABLE


def test_a_running_request_is_cancelled_within_a_moment(tiny: Model) -> None:
    cancel = tiny.library.make("cancel_create")
    timer = threading.Timer(0.2, tiny.library.do, ("cancel_request", cancel))
    timer.start()
    start = time.monotonic()
    with pytest.raises(StatusError) as caught:
        tiny.generate(["a dog"], num_images=512, nfe=64, width=128, height=128, cancel=cancel)  # minutes of work
    assert caught.value.code == CANCELLED
    assert time.monotonic() - start < 10
    timer.join()
    tiny.library.do("cancel_destroy", cancel)
    tiny.generate(["a dog"])  # the session works on


def test_a_deadline_ends_a_request(tiny: Model) -> None:
    start = time.monotonic()
    with pytest.raises(StatusError, match=r"not done within its timeout of 0\.3 s") as caught:
        tiny.generate(["a dog"], num_images=512, nfe=64, width=128, height=128, timeout=0.3)
    assert caught.value.code == DEADLINE_EXCEEDED
    assert time.monotonic() - start < 10
    tiny.generate(["a dog"])
