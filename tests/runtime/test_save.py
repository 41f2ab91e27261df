"""What a generation writes: the files of the command, all or none, and Pillow images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.locate import ENVIRONMENT
from foundation.cli import run
from foundation.errors import ArcFlowError
from runtime.errors import RequestError
from runtime.generate import main
from runtime.image import read_settings
from runtime.pipeline import Pipeline

PROMPT = "a smiling face with sunglasses"


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("count", "previews", "scale"), [(1, 0, 1), (2, 2, 3)])
def test_saved_files_are_those_of_the_command(
    small: Path,
    pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    previews: int,
    scale: int,
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(small.parent))
    options = ["--num-images", str(count), "--previews", str(previews), "--scale", str(scale), "--threads", "1"]
    assert run(main, [PROMPT, "--seed", "9", "--out", str(tmp_path / "command" / "b.png"), *options]) == 0
    made = pipeline.generate(PROMPT, seed=9, num_images=count, previews=previews)
    paths = made.save(tmp_path / "program" / "b.png", scale=scale)
    assert _files(tmp_path / "program") == _files(tmp_path / "command")
    assert sorted(path.name for path in paths) == list(_files(tmp_path / "program"))
    assert read_settings(paths[0])["seed"] == 9


def test_a_string_is_a_path(pipeline: Pipeline, tmp_path: Path) -> None:
    assert pipeline.generate(PROMPT).save(str(tmp_path / "a.PNG")) == (tmp_path / "a.PNG",)


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("a.jpg", 1, "only PNG files are written; give a name that ends in .png"),
        ("a", 1, "only PNG files are written"),
        ("a.png", 0, "scale is 0; it must be from 1 to 64"),
        ("a.png", 65, "scale is 65"),
        ("folder.png", 1, "it is a folder"),
        ("file/a.png", 1, "is not a folder; choose another path"),
    ],
)
def test_what_cannot_be_saved(pipeline: Pipeline, tmp_path: Path, name: str, scale: int, message: str) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("stays")
    with pytest.raises(RequestError, match=message):
        pipeline.generate(PROMPT).save(tmp_path / name, scale=scale)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_folder_that_cannot_be_written(pipeline: Pipeline) -> None:
    with pytest.raises(ArcFlowError, match="cannot write"):
        pipeline.generate(PROMPT).save("/proc/none/a.png")


def test_pillow_images_have_the_same_pixels(pipeline: Pipeline) -> None:
    made = pipeline.generate([PROMPT, "a lemon"])
    images = made.pil()
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in images)
    for image, array in zip(images, made.images, strict=True):
        np.testing.assert_array_equal(np.asarray(image), array)
    images[0].putpixel((0, 0), (1, 2, 3))
    assert made.images[0][0, 0].tolist() != [1, 2, 3]
