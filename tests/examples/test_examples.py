"""The examples run on the embedded model, as a user runs them: by path, in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.image import read_settings

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DOCS = ROOT / "docs"


def run(name: str, folder: Path, *arguments: str) -> str:
    """Standard output of the example, run in ``folder``."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_program_is_run_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert not [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text]


def test_generate(tmp_path: Path) -> None:
    assert "64 x 64 px, 2 network evaluations" in run("generate.py", tmp_path, "a red apple", "a/apple.png")
    settings = read_settings(tmp_path / "a" / "apple.png")
    assert (settings["prompt"], settings["seed"], settings["scale"]) == ("a red apple", 5, 4)


def test_batch(tmp_path: Path) -> None:
    lines = run("batch.py", tmp_path).splitlines()
    assert [read_settings(path)["seed"] for path in sorted(tmp_path.rglob("*.png"))] == [10, 11, 12, 13, 14, 15]
    assert lines[3].endswith("image-03.png: a pizza, seed 13")
    assert int(lines[-1].split()[-1]) <= 1


def test_previews(tmp_path: Path) -> None:
    assert run("previews.py", tmp_path).count("noise level") == 6
    folder = tmp_path / "out" / "previews"
    assert len(list(folder.glob("heart-preview-*.png"))) == 6
    assert pixels(folder / "strip.png").shape == (128, 7 * 128, 3)


def test_callback(tmp_path: Path) -> None:
    lines = run("callback.py", tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines[:5]] == [f"evaluation {i} of 4" for i in (1, 2, 3, 4, 1)]
    assert lines[5:] == ["stopped after the first evaluation", "still usable: 1 image"]


@pytest.mark.slow
def test_lora_build(tmp_path: Path) -> None:
    run("lora_build.py", tmp_path, "lora")
    plain, styled = (pixels(tmp_path / "lora" / f"{name}.png") for name in ("plain", "styled"))
    assert plain.shape == styled.shape
    assert np.abs(plain.astype(int) - styled).max() > 8


def test_gallery_is_what_its_program_makes(tmp_path: Path) -> None:
    run("gallery.py", tmp_path, "new")
    new = tmp_path / "new"
    assert (new / "gallery.md").read_text(encoding="utf-8") == (DOCS / "gallery.md").read_text(encoding="utf-8")
    made = {path.name: path for path in (new / "images" / "gallery").iterdir()}
    committed = {path.name: path for path in (DOCS / "images" / "gallery").iterdir()}
    assert made.keys() == committed.keys()
    for name, path in made.items():
        # Another release of ONNX Runtime may round otherwise.
        np.testing.assert_allclose(pixels(path).astype(int), pixels(committed[name]), atol=2)
        assert read_settings(path) == read_settings(committed[name])


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "first_image.ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    namespace: dict[str, object] = {}
    for source in code:
        exec(compile(source, "first_image.ipynb", "exec"), namespace)
    assert read_settings(tmp_path / "out" / "notebook" / "sunglasses.png")["seed"] == 5
    assert not any(cell.get("outputs") for cell in notebook["cells"]), "clear the outputs: they go stale"
