"""``python -m arcflow.sample``: the image of the embedded student is its bundle's, and bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcflow import sample
from foundation.cli import run
from runtime.pipeline import Pipeline
from tests.export.pipelines import small_qwen

TINY = "models/tiny"


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        sample.main(["--help"])
    assert stop.value.code == 0
    assert "python -m arcflow.sample --recipe tiny" in capsys.readouterr().out


@pytest.mark.parametrize(("seed", "nfe"), [(7, None), (2**64 - 1, 4)])
def test_the_image_is_that_of_the_bundle(
    seed: int, nfe: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "face.png"
    more = [] if nfe is None else ["--nfe", str(nfe)]
    assert run(sample.main, ["a smiling face with sunglasses", "--seed", str(seed), "--out", str(out), *more]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as image:
        pixels, settings = np.asarray(image).astype(int), json.loads(image.text["arcflow"])  # type: ignore[attr-defined]
    with Pipeline.open("tiny") as pipeline:
        bundle = pipeline.generate("a smiling face with sunglasses", seed=seed, nfe=nfe).images[0]
    assert pixels.shape == (64, 64, 3) and np.abs(pixels - bundle).max() <= 1
    assert settings["seed"] == seed and settings["num_inference_steps"] == (nfe or 2)
    assert settings["guidance_scale"] == 2.0


def test_qwen_image_from_folders(tmp_path: Path) -> None:
    sources = small_qwen(tmp_path)
    places = ["--base", str(sources.base), "--adapter", str(sources.adapter), "--out", str(tmp_path / "o.png")]
    size = ["--width", "48", "--height", "32", "--text-tokens", "16"]
    assert run(sample.main, ["--recipe", "qwen", *places, *size, "一只黑色的包"]) == 0
    with Image.open(tmp_path / "o.png") as image:
        assert image.size == (48, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nfe", "0"], "--nfe must be at least 1"),
        (["--seed", "-1"], "2^64 - 1"),
        (["--guidance", "nan"], "--guidance must be finite"),
        (["--out", "image.jpg"], "ends with .png"),
        (["--offload"], "--device cuda"),
        (["--recipe", "qwen", "--guidance", "3"], "built in; leave it out"),
        (["--text-tokens", "600"], "at most 512"),
    ],
)
def test_options_that_cannot_be(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        sample.main(["a rose", *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "huge"], "choose one of"),
        (["--recipe", "flux"], "there is no adapter at"),
        (["--device", "nowhere"], "--device nowhere cannot be used"),
        (["--base", "models"], "no model_index.json"),
        (["--base", "models/none/teacher/at/all"], "there is no folder models/none"),
        (["--width", "72"], "multiples of 16"),
        (["--recipe", "qwen", "--base", TINY + "/teacher", "--adapter", TINY + "/adapter"], "is a FluxPipeline"),
    ],
)
def test_what_cannot_be_opened_is_one_line_and_exit_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "o.png"
    assert run(sample.main, ["a rose", "--out", str(out), *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not out.exists()
