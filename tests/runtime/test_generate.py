"""``python -m runtime.generate``: files, JSON, and one clear line for what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from engines.bundle import open_bundle
from engines.locate import ENVIRONMENT
from engines.schema import MANIFEST_NAME
from foundation.cli import run
from runtime.generate import build_parser, main
from runtime.image import read_settings
from tests.engines.damages import cached
from tests.runtime.small_bundle import flip

PROMPT = "a smiling face with sunglasses"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with the small bundle as the model ``tiny``."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv(ENVIRONMENT, str(small.parent))
    return folder


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_prompt_is_enough(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, [PROMPT]) == 0
    assert _files(home) == ["arcflow-out/a-smiling-face-with-sunglasses-0.png"]
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "arcflow-out/a-smiling-face-with-sunglasses-0.png"
    assert "1 x 32x32 px, 2 evaluations, seed 0, " in captured.out
    assert captured.err == ""


def test_names_scale_previews_and_settings(home: Path) -> None:
    assert (
        run(main, [PROMPT, "--num-images", "2", "--previews", "2", "--scale", "3", "--seed", "9", "--out", "x/b.png"])
        == 0
    )
    names = [f"x/b-0{i}{rest}.png" for i in range(2) for rest in ("", "-preview-00", "-preview-01")]
    assert _files(home) == sorted(names)
    for name in names:
        with Image.open(home / name) as image:
            assert image.size == (96, 96)
    settings = read_settings(home / "x/b-01.png")
    assert (settings["prompt"], settings["seed"], settings["nfe"], settings["scale"]) == (PROMPT, 10, 2, 3)
    assert "sigma" not in settings
    assert 0 < read_settings(home / "x/b-01-preview-01.png")["sigma"] < 1


def test_the_same_seed_gives_the_same_file(home: Path) -> None:
    for name in ("1.png", "2.png"):
        assert run(main, [PROMPT, "--seed", "3", "--out", name]) == 0
    assert run(main, [PROMPT, "--seed", "4", "--out", "3.png"]) == 0
    one, two, three = ((home / name).read_bytes() for name in _files(home))
    assert one == two != three


def test_json_is_one_object(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(main, [PROMPT * 4, "--json", "--out", "a.png", "--width", "64", "--num-images", "2", "--previews", "1"])
        == 0
    )
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["files"] == ["a-00.png", "a-00-preview-00.png", "a-01.png", "a-01-preview-00.png"]
    assert [image["seed"] for image in document["images"]] == [0, 1]
    assert document["images"][0]["width"] == 64
    stages = {"start", "import", "open", "tokenize", "text", "noise", "backbone", "solver", "vae", "write", "total"}
    assert set(document["timings"]) == stages
    assert document["timings"]["total"] > 0
    assert len(document["warnings"]) == 2
    assert captured.err.count("warning: ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "the prompt is empty"),
        (["   "], "the prompt is empty"),
        (["a \udcff dog"], "not plain text"),
        ([PROMPT, "--width", "100000"], "width is 100000; it must be from 16 to 64"),
        ([PROMPT, "--height", "33"], "height is 33 px; it must be a multiple of 8"),
        ([PROMPT, "--width", "-8"], "width is -8"),
        ([PROMPT, "--nfe", "0"], "nfe is 0; it must be from 1 to 64"),
        ([PROMPT, "--nfe", "65"], "nfe is 65"),
        ([PROMPT, "--seed", "-1"], "seed is -1"),
        ([PROMPT, "--seed", str(2**64)], "seed is 18446744073709551616"),
        ([PROMPT, "--num-images", "0"], "num_images is 0"),
        ([PROMPT, "--num-images", "-3"], "num_images is -3"),
        ([PROMPT, "--num-images", str(10**9)], "num_images is 1000000000"),
        ([PROMPT, "--previews", "-1"], "previews is -1"),
        ([PROMPT, "--previews", str(10**9)], "previews is 1000000000"),
        ([PROMPT, "--scale", "0"], "scale is 0"),
        ([PROMPT, "--scale", str(10**9)], "scale is 1000000000"),
        ([PROMPT, "--threads", "0"], "threads is 0"),
        ([PROMPT, "--model", "huge"], "no bundle for 'huge'"),
        ([PROMPT, "--model", "./nowhere"], "there is no bundle at nowhere"),
        ([PROMPT, "--model", ""], "no bundle for ''"),
        ([PROMPT, "--precision", "fp4"], "no bundle for 'tiny fp4'"),
        ([PROMPT, "--target", "sm89"], "no bundle for 'tiny sm89'"),
        ([PROMPT, "--out", "picture.jpg"], "only PNG files"),
        ([PROMPT, "--out", "."], "only PNG files"),
        ([PROMPT, "--out", "a" * 300 + ".png"], "cannot write"),
        ([PROMPT, "--out", "/proc/none/a.png"], "cannot write"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_written(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(main, arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], [PROMPT, "--seed", "x"], [PROMPT, "--nope"], [PROMPT, "--nfe", "1.5"]])
def test_bad_options_are_one_clear_line(home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(main, arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(home.iterdir()) == []


def test_an_output_under_a_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "file").write_text("keep")
    assert run(main, [PROMPT, "--out", "file/deeper/a.png"]) == 2
    assert "file is not a folder; choose another --out" in capsys.readouterr().err
    assert _files(home) == ["file"]


def test_an_output_that_is_a_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "a.png").mkdir()
    assert run(main, [PROMPT, "--out", "a.png"]) == 2
    assert "it is a folder" in capsys.readouterr().err


def test_one_of_many_outputs_is_a_folder(home: Path) -> None:
    (home / "a-03.png").mkdir()
    assert run(main, [PROMPT, "--out", "a.png", "--num-images", "5"]) == 2
    assert _files(home) == []


@pytest.mark.parametrize(
    "path",
    [
        "backbone.onnx",
        "clip.onnx",
        "conditioner.onnx",
        "t5.onnx",
        "vae_decoder.onnx",
        "tokenizers/clip.json",
        MANIFEST_NAME,
    ],
)
def test_a_flipped_byte_in_any_file(
    small: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "damaged"))
    data = (folder / path).read_bytes()
    (folder / path).write_bytes(flip(data, len(data) // 3))
    assert run(main, [PROMPT, "--model", str(folder)]) == 2
    captured = capsys.readouterr()
    assert path in captured.err
    assert captured.err.count("\n") == 1
    assert list(home.iterdir()) == []


def test_a_bundle_in_a_cache(small: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(cached(small, tmp_path / "hub"))
    assert run(main, [PROMPT, "--model", folder]) == 2
    assert "is a symbolic link; a bundle holds plain files only" in capsys.readouterr().err
    assert run(main, [PROMPT, "--model", folder, "--allow-links", "--out", "linked.png"]) == 0
    assert run(main, [PROMPT, "--model", str(small), "--out", "plain.png"]) == 0
    assert (home / "linked.png").read_bytes() == (home / "plain.png").read_bytes()


def test_help_has_examples() -> None:
    assert 'python -m runtime.generate "a smiling face with sunglasses"\n' in build_parser().format_help()


def _python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


def test_generating_imports_no_training_stack() -> None:
    code = (
        "import sys\nfrom runtime.generate import main\n"
        f"assert main([{PROMPT!r}, '--previews', '1']) == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'peft', 'safetensors', 'onnx', 'arcflow'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = _python("-c", code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, runtime; print([m for m in ('numpy', 'onnxruntime', 'PIL', 'msgspec') if m in sys.modules])"
    assert _python("-c", code).stdout == "[]\n"


def test_as_a_command_a_fresh_process_makes_the_same_file(home: Path) -> None:
    assert run(main, [PROMPT, "--seed", "3", "--out", "here.png"]) == 0
    done = _python("-m", "runtime.generate", PROMPT, "--seed", "3", "--out", "there.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert (home / "here.png").read_bytes() == (home / "there.png").read_bytes()


def test_as_a_command_a_fault_is_exit_code_2_and_one_line(home: Path) -> None:
    done = _python("-m", "runtime.generate", PROMPT, "--nfe", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nfe is 0; it must be from 1 to 64\n"
    assert list(home.iterdir()) == []


def test_the_default_bundle_is_whole(default_bundle: Path) -> None:
    assert str(open_bundle(default_bundle).name) == default_bundle.name
