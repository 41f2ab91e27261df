"""``arcflow-serve`` over real sockets: its images, and how they are made together."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving import Server
from runtime import Pipeline
from runtime.image import encode_png
from tests.native.server.serving import PROMPT, SLOW, Start, images, in_background, is_running, until


def check_files(found: list[bytes], wanted: list[bytes], same_zlib: bool) -> None:
    """Equal bytes, or where the zlibs differ equal pixels and settings."""
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        with Image.open(io.BytesIO(ours)) as one, Image.open(io.BytesIO(theirs)) as other:
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
            assert one.info == other.info
        assert ours == theirs or not same_zlib


def test_an_image_is_pythons_byte_for_byte(server: Server, pipeline: Pipeline, same_zlib: bool) -> None:
    answers = [server.generate(prompt=PROMPT, seed=7) for _ in range(2)]
    generation = pipeline.generate(PROMPT, seed=7)
    wanted = encode_png(generation.images[0], {**generation.settings.of_image(0), "scale": 1})
    assert images(answers[0]) == images(answers[1])
    check_files(images(answers[0]), [wanted], same_zlib)
    document = answers[0].json()
    assert document["data"][0]["seed"] == 7
    assert (document["model"], document["size"], document["nfe"]) == ("tiny", "64x64", 2)
    assert abs(document["created"] - time.time()) < 60
    assert set(document["timings"]) == {"queue", "generate", "encode", "total"}


def test_several_images_with_size_and_evaluations(server: Server, pipeline: Pipeline, same_zlib: bool) -> None:
    answer = server.generate(prompt="a red apple", seed=2**64 - 1, n=3, size="128x96", nfe=3, model="tiny", user="me")
    generation = pipeline.generate("a red apple", seed=2**64 - 1, num_images=3, width=128, height=96, nfe=3)
    wanted = [
        encode_png(image, {**generation.settings.of_image(j), "scale": 1}) for j, image in enumerate(generation.images)
    ]
    check_files(images(answer), wanted, same_zlib)
    assert [one["seed"] for one in answer.json()["data"]] == [2**64 - 1, 0, 1]


def test_without_a_seed_images_differ_and_the_seed_is_told(server: Server) -> None:
    first, second = (server.generate(prompt=PROMPT) for _ in range(2))
    assert images(first) != images(second)
    seed = first.json()["data"][0]["seed"]
    assert 0 <= seed < 2**53
    assert images(server.generate(prompt=PROMPT, seed=seed)) == images(first)


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_other_formats(server: Server, name: str) -> None:
    def made(**fields: object) -> bytes:
        answer = server.generate(prompt=PROMPT, seed=7, size="128x96", **fields)
        assert answer.json()["output_format"] == fields.get("output_format", "png")
        return images(answer)[0]

    def pixels(file: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(file)) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    png, best, small = made(), made(output_format=name), made(output_format=name, output_compression=10)
    for file in (best, small):
        with Image.open(io.BytesIO(file)) as image:
            assert (image.format, image.size) == (name.upper(), (128, 96))
            if name == "jpeg":
                assert json.loads(image.info["comment"])["seed"] == 7
    assert len(small) < len(best)
    assert np.abs(pixels(best) - pixels(png)).mean() < 3
    assert np.abs(pixels(small) - pixels(png)).mean() > np.abs(pixels(best) - pixels(png)).mean()


def test_requests_that_wait_are_made_together(start: Start, pipeline: Pipeline) -> None:
    server = start("--max-batch", "8")
    with ThreadPoolExecutor(9) as pool:
        slow = in_background(pool, server, **{**SLOW, "n": 1})
        assert until(lambda: is_running(server))
        waiting = [in_background(pool, server, prompt=f"a dog {j % 3}", seed=j) for j in range(8)]
        assert slow.result().status == 200
        answers = [one.result() for one in waiting]
    metrics = server.metrics()
    assert (
        metrics['arcflow_batch_size_bucket{model="tiny",le="1"}'] < 5
    )  # the slow one, and whoever came too late to be joined
    assert metrics['arcflow_batch_size_sum{model="tiny"}'] == 9
    for seed, answer in enumerate(answers):
        wanted = pipeline.generate(f"a dog {seed % 3}", seed=seed).images[0]
        with Image.open(io.BytesIO(images(answer)[0])) as image:
            # A matrix product's last bit may depend on how many rows it has: a pixel may round the other way.
            assert np.abs(np.asarray(image).astype(int) - wanted).max() <= 1
            settings = json.loads(image.info["arcflow"])
        assert (settings["prompt"], settings["seed"]) == (f"a dog {seed % 3}", seed)


def benchmark(name: str, native_tree: Path, figures: Path, *options: str) -> dict[str, Any]:
    """What a benchmark of the server measures when it is asked for little."""
    script = Path(__file__).parents[3] / "benchmarks" / name
    command = [sys.executable, str(script), *options, "--json", str(figures)]
    environment = {**os.environ, "ARCFLOW_NATIVE_BUILD": str(native_tree)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    measured: dict[str, Any] = json.loads(figures.read_text())
    assert measured == json.loads(done.stdout.splitlines()[-1])
    return measured


def test_a_short_soak(native_tree: Path, tmp_path: Path) -> None:
    # So short a run says nothing of small growth; the whole one does.
    options = ("--requests", "120", "--warm-up", "60", "--growth", "0.25")
    measured = benchmark("serve_soak.py", native_tree, tmp_path / "soak.json", *options)
    assert (measured["lost"], measured["answered_twice"], measured["images_total"]) == (0, 0, 180)


def test_what_partial_images_cost_is_measured(native_tree: Path, tmp_path: Path) -> None:
    measured = benchmark("serve_frames.py", native_tree, tmp_path / "frames.json", "--requests", "3")
    for kind in ("64x64, 0", "64x64, 8", "96x64, 0", "96x64, 8"):
        assert measured[kind]["processor_ms"] >= 0.0 and measured[kind]["wait_ms"] > 0.0
