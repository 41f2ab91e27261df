"""From prompts to a bundle as a user types it: distilled and exported, and the bundle's image is torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from arcflow import distill, sample
from arcflow.adapter import CONFIG_FILE, WEIGHTS_FILE
from export import build
from foundation.cli import run
from runtime.pipeline import Pipeline
from tests.export.pipelines import CAPTIONS, Sources, small_flux, small_qwen

FAMILIES: dict[str, Callable[[Path], Sources]] = {"flux": small_flux, "qwen": small_qwen}
SEED, SIDE = 7, 256
STEP = 1  # Of 255: what rounding may move.
SHAPES = ["--resolutions", f"{SIDE}x{SIDE}", "--batch", "1"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_distilled_student_is_the_same_in_torch_and_in_its_bundle(family: str, tmp_path: Path) -> None:
    base, recipe = FAMILIES[family](tmp_path / "models").base, tmp_path / "small.toml"
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS), encoding="utf-8")
    recipe.write_text(
        f"extends = '{family}'\nname = 'small'\n[student]\nrank = 4\nmodes = 3\n"
        "[distill]\ntext_tokens = 16\nsizes = ['64x64']\nloop = { batch = 2, lr = 1e-1, warmup = 0 }\n"
    )
    adapter, bundle = tmp_path / "adapter", tmp_path / "bundle"
    given = ["--recipe", str(recipe), "--base", str(base)]
    options = ["--iterations", "2", "--prompts", str(tmp_path / "prompts.txt"), "--device", "cpu"]
    assert run(distill.main, [*given, *options, "--workdir", str(tmp_path / "work"), "--out", str(adapter)]) == 0

    sources = ["--model", family, "--base", str(base), "--adapter", str(adapter)]
    places = ["--out", str(bundle), "--workdir", str(tmp_path / "export")]
    assert run(build.main, [*sources, "--precision", "fp32", "--target", "cpu", *SHAPES, *places]) == 0
    with Pipeline.open(bundle) as pipeline:
        ours = pipeline.generate(CAPTIONS[0], seed=SEED, width=SIDE, height=SIDE).images[0]

    assert ours.shape == (SIDE, SIDE, 3)
    assert _difference(ours, _sampled(given, adapter, tmp_path / "distilled.png")) <= STEP
    # The image tells students apart: without its LoRA, this one's is another.
    assert _difference(ours, _sampled(given, _without_lora(adapter, tmp_path / "bare"), tmp_path / "bare.png")) > STEP


def _sampled(given: list[str], adapter: Path, out: Path) -> NDArray[np.uint8]:
    size = ["--seed", str(SEED), "--width", str(SIDE), "--height", str(SIDE)]
    assert run(sample.main, [CAPTIONS[0], *given, "--adapter", str(adapter), *size, "--out", str(out)]) == 0
    with Image.open(out) as image:
        return np.asarray(image)


def _without_lora(adapter: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / CONFIG_FILE).write_bytes((adapter / CONFIG_FILE).read_bytes())
    tensors = load_file(adapter / WEIGHTS_FILE)
    save_file(
        {key: 0 * tensor if ".lora_B." in key else tensor for key, tensor in tensors.items()}, folder / WEIGHTS_FILE
    )
    return folder


def _difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.abs(a.astype(int) - b).max())
