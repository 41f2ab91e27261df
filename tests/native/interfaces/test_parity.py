"""The embedded default through C++ and through Python, on one release of ONNX Runtime: the same images.

Latents are held to 1e-5 of their largest value, PNG files to their bytes (where both zlibs are of one release; else to
their pixels and settings).
"""

from __future__ import annotations

import io
import json
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.locate import BUILT_IN
from foundation.errors import ArcFlowError
from runtime import Pipeline
from runtime.image import encode_png

LIMIT = 1e-5

REQUESTS: list[dict[str, Any]] = [
    {"prompts": ["a smiling face with sunglasses"]},
    {"prompts": ["a smiling face with sunglasses"], "seed": 2**64 - 2, "num_images": 4},
    {"prompts": ["a red apple", "picture of a pizza", "a red apple"], "seed": 7, "num_images": 2},
    {"prompts": ["a cat"], "nfe": 1},
    {"prompts": ["a cat"], "nfe": 4, "seed": 99},
    {"prompts": ["a lemon"], "nfe": 16, "seed": 5},
    {"prompts": ["a strawberry"], "width": 128, "height": 128, "num_images": 3},
    {"prompts": ["a star"], "width": 32, "height": 96},
    {"prompts": ["a star"], "width": 112, "height": 48, "nfe": 3},
    {"prompts": ["a blue heart"], "previews": 6},
    {"prompts": ["a banana", "dice"], "previews": 5, "nfe": 3, "seed": 12},
    {"prompts": ["a whale"], "num_images": 18, "seed": 1000},  # More than a batch.
    {"prompts": ["\u201cCAF\u00c9\u201d \U0001f45f \u4e2d\u6587  star"], "seed": 3},
    {"prompts": ["a dog and " * 60], "seed": 4},  # Does not fit: a warning from each encoder.
]


def native(tree: Path, onnxruntime: Path, threads: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the probe answers to each request."""
    defaults = {"seed": 0, "num_images": 1, "nfe": 0, "width": 0, "height": 0, "previews": 0}
    lines = "".join(json.dumps({**defaults, **request}) + "\n" for request in requests)
    command = [tree / "bin" / "probe_parity", BUILT_IN / "tiny-fp16-cpu", tree / "lib" / "arcflow", onnxruntime]
    done = subprocess.run([*command, str(threads)], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def in_python(pipeline: Pipeline, request: dict[str, Any]) -> tuple[Any, list[list[float]]]:
    """The generation and its steps."""
    steps: list[list[float]] = []
    arguments = {name: value for name, value in request.items() if name != "prompts"}
    generation = pipeline.generate(
        request["prompts"],
        **arguments,
        on_step=lambda step: steps.append([step.first_image, step.sigma_from, step.sigma_to]),
    )
    return generation, steps


@pytest.fixture(scope="module")
def same_zlib(native_tree: Path) -> bool:
    """Whether the core was linked with the release of zlib that Python uses."""
    line = json.dumps({"rgb8": "000000", "width": 1, "height": 1, "settings": None})
    done = subprocess.run([native_tree / "bin" / "probe_png"], input=line, capture_output=True, text=True, check=True)
    release: str = json.loads(done.stdout)["zlib"]
    return release == zlib.ZLIB_RUNTIME_VERSION


def check_png(data: str, expected: bytes, *, same_zlib: bool) -> None:
    """Equal bytes, or where the zlibs differ equal pixels and settings."""
    found = bytes.fromhex(data)
    if same_zlib:
        assert found == expected
    with Image.open(io.BytesIO(found)) as image, Image.open(io.BytesIO(expected)) as reference:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(reference))
        assert image.info == reference.info


@pytest.mark.parametrize(("threads", "requests"), [(1, REQUESTS), (2, REQUESTS[::4])], ids=["1 thread", "2 threads"])
def test_the_same_pictures(
    native_tree: Path, onnxruntime_library: Path, same_zlib: bool, threads: int, requests: list[dict[str, Any]]
) -> None:
    pipeline = Pipeline.open(threads=threads)
    answers = native(native_tree, onnxruntime_library, threads, requests)
    assert len(answers) == len(requests)
    worst, values, equal = 0.0, 0, 0
    for request, answer in zip(requests, answers, strict=True):
        assert "error" not in answer, answer
        generation, steps = in_python(pipeline, request)
        reference = generation.latents
        latents = np.frombuffer(bytes.fromhex(answer["latents"]), dtype=np.float32).reshape(reference.shape)
        worst = max(worst, float(np.abs(latents - reference).max() / np.abs(reference).max()))
        values, equal = values + latents.size, equal + int((latents == reference).sum())
        assert worst <= LIMIT, request
        assert answer["steps"] == steps
        assert tuple(answer["warnings"]) == generation.warnings
        for index, picture in enumerate(generation.images):
            settings = generation.settings.of_image(index)
            assert answer["settings"][index] == settings
            assert list(answer["settings"][index]) == list(settings)
            check_png(answer["pngs"][index], encode_png(picture, settings), same_zlib=same_zlib)
        frames = {(frame["image"], frame["sigma"]): frame["png"] for frame in answer["frames"]}
        assert len(frames) == sum(map(len, generation.previews))
        for index, previews in enumerate(generation.previews):
            for preview in previews:
                settings = {**generation.settings.of_image(index), "sigma": preview.sigma}
                check_png(frames[index, preview.sigma], encode_png(preview.image, settings), same_zlib=same_zlib)
    print(f"{threads} threads: largest relative difference {worst:.3g}; {equal} of {values} latents equal to the bit")


def test_the_same_refusals(native_tree: Path, onnxruntime_library: Path) -> None:
    requests: list[dict[str, Any]] = [
        {"prompts": []},
        {"prompts": [" \t"]},
        {"prompts": ["x"], "width": 33},
        {"prompts": ["x"], "height": 16},
        {"prompts": ["x"], "nfe": 65},
        {"prompts": ["x"] * 3, "num_images": 500},
        {"prompts": ["x" * 10_001]},
        {"prompts": ["x"], "previews": 65},
    ]
    pipeline = Pipeline.open(threads=1)
    for request, answer in zip(requests, native(native_tree, onnxruntime_library, 1, requests), strict=True):
        with pytest.raises(ArcFlowError) as caught:
            in_python(pipeline, request)
        assert answer == {"error": str(caught.value), "code": 1}
