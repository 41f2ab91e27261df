"""The folders that GenEval and DPG-Bench read: their layout, what is in them, and what resumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from arcflow import evaluate
from arcflow.errors import PromptsError
from arcflow.evaluation.sets import dpg, geneval
from foundation.cli import run
from tests.export.pipelines import Sources

PROMPTS = ("a dark bag on the table", "one light boot, red")


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    """GenEval's file of two prompts."""
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps({"tag": "counting", "include": [], "prompt": p}) + "\n" for p in PROMPTS))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """DPG-Bench's folder of the same prompts."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, prompt in zip(("0", "drawtext3"), PROMPTS, strict=True):
        (folder / f"{name}.txt").write_text(f"{prompt}\n")
    return folder


def made(kind: str, metadata: Path, flux: Sources, out: Path, *more: str) -> int:
    given = ["--recipe", "flux", "--base", str(flux.base), "--adapter", str(flux.adapter), "--device", "cpu"]
    given += ["--size", "32x32", "--text-tokens", "16", "--dtype", "float32"]
    return run(evaluate.main, [*given, "--images", kind, "--metadata", str(metadata), "--out", str(out), *more])


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def test_both_have_the_same_images_in_their_own_layout(
    flux: Sources, metadata: Path, prompts: Path, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "geneval", tmp_path / "dpg"
    assert made("geneval", metadata, flux, ours) == 0 and made("dpg", prompts, flux, theirs) == 0
    samples = [f"samples/{place:04d}.png" for place in range(4)]
    wanted = {f"{folder}/{name}" for folder in ("00000", "00001") for name in ("metadata.jsonl", *samples)}
    assert {path.relative_to(ours).as_posix() for path in ours.rglob("*") if path.is_file()} == wanted
    assert sorted(path.name for path in theirs.iterdir()) == ["0.png", "drawtext3.png"]
    lines = metadata.read_text().splitlines()
    for number, name in enumerate(("0.png", "drawtext3.png")):
        folder = ours / f"{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == json.loads(lines[number])
        whole = pixels(theirs / name)
        assert whole.shape == (64, 64, 3)
        # From the left, the upper row first, as DPG-Bench cuts them out.
        quarters = [whole[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
        images = [pixels(folder / sample) for sample in samples]
        assert all(np.array_equal(a, b) for a, b in zip(quarters, images, strict=True))
        assert not any(np.array_equal(images[0], image) for image in images[1:])


def test_what_is_there_is_not_made_again(
    flux: Sources, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dpg"
    assert made("dpg", prompts, flux, out) == 0
    assert "2 files in" in capsys.readouterr().err
    kept, lost = out / "0.png", out / "drawtext3.png"
    before, when = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert made("dpg", prompts, flux, out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(out), "images": 2, "made": 1}
    assert lost.read_bytes() == before and kept.stat().st_mtime_ns == when


def test_images_of_other_settings_are_not_mixed(
    flux: Sources, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dpg"
    assert made("dpg", prompts, flux, out) == 0
    (out / "0.png").unlink()
    assert made("dpg", prompts, flux, out, "--nfe", "4") == 2
    assert "drawtext3.png was made of another student or prompt" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["drawtext3.png"]


def test_an_adapter_without_weights_is_one_line(
    flux: Sources, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((flux.adapter / "config.json").read_bytes())
    assert made("dpg", prompts, flux, tmp_path / "dpg", "--adapter", str(tmp_path / "bare")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no adapter at" in said and not (tmp_path / "dpg").exists()


def test_every_image_has_a_noise_of_its_own(metadata: Path, prompts: Path) -> None:
    for files in (geneval(metadata, 2**64 - 3), dpg(prompts, 2**64 - 3)):
        seeds = [seed for file in files for seed in file.seeds]
        assert len(set(seeds)) == 8 and max(seeds) < 2**64


@pytest.mark.parametrize("text", ['{"tag": "x"}', "a rose", "[1]", "", '{"prompt": 3}'])
def test_a_file_without_prompts_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(text)
    with pytest.raises(PromptsError):
        geneval(path, 0)
    (tmp_path / "0.txt").write_text("\n")
    with pytest.raises(PromptsError, match="holds no prompt"):
        dpg(tmp_path, 0)
