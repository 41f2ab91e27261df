"""Images in the terminal: what it tells that it can, any size of image and of terminal, the strip, and `make demo`."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foundation.cli import run
from runtime.image import encode_png, read_settings, targets, write_files
from scripts.show import LEAST, SIDE, Colours, colours_of, main, rendition, strip_rendition

ROOT = Path(__file__).parents[2]
ESCAPE = re.compile(r"\x1b\[[\d;]*m")
XTERM = {"TERM": "xterm-256color"}


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True


def seen(line: str) -> str:
    """What of a line takes room."""
    return ESCAPE.sub("", line)


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def written(out: Path, previews: int, width: int = 20, height: int = 12) -> Path:
    """An image of noise and its previews, as ``runtime.generate`` writes them."""
    contents = {}
    for seed, (path, _, frame) in enumerate(targets(out, 1, previews)):
        settings = {"prompt": "noise"} if frame is None else {"prompt": "noise", "sigma": 1 - (frame + 1) / 16}
        contents[path] = encode_png(noise(width, height, seed), settings)
    write_files(contents)
    return out


# --- what the terminal can ---


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({**XTERM, "COLORTERM": "truecolor"}, Colours.TRUE),
        ({"TERM": "xterm", "COLORTERM": "24bit"}, Colours.TRUE),
        ({"TERM": "xterm-direct"}, Colours.TRUE),
        (XTERM, Colours.XTERM),
        ({"TERM": "tmux-256color", "COLORTERM": "yes"}, Colours.XTERM),
        ({**XTERM, "NO_COLOR": ""}, Colours.XTERM),
        ({"TERM": "xterm"}, Colours.NONE),
        ({"TERM": "linux"}, Colours.NONE),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, Colours.NONE),
        ({"COLORTERM": "truecolor"}, Colours.NONE),
        ({**XTERM, "COLORTERM": "truecolor", "NO_COLOR": "1"}, Colours.NONE),
    ],
)
def test_a_terminal_tells_what_it_can(environment: Mapping[str, str], wanted: Colours) -> None:
    assert colours_of(Terminal(), environment) is wanted


def test_no_colours_without_a_terminal_or_half_blocks() -> None:
    able = {**XTERM, "COLORTERM": "truecolor"}
    assert colours_of(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), able) is Colours.NONE
    assert colours_of(Terminal("latin-1"), able) is Colours.NONE


# --- pictures ---


@pytest.mark.parametrize(
    ("colours", "line"),
    [
        (Colours.TRUE, "\x1b[38;2;255;0;0;48;2;0;0;254m▀\x1b[0m"),
        (Colours.XTERM, "\x1b[38;5;196;48;5;21m▀\x1b[0m"),
        (Colours.NONE, "#"),
    ],
)
def test_two_pixels_a_character(colours: Colours, line: str) -> None:
    image = Image.fromarray(np.array([[[255, 0, 0]], [[0, 0, 254]]], dtype=np.uint8))
    assert rendition(image, 2, colours) == [line]


@pytest.mark.parametrize(("value", "number", "character"), [(0, 16, "@"), (128, 244, "="), (255, 231, " ")])
def test_greys(value: int, number: int, character: str) -> None:
    image = Image.new("RGB", (2, 2), (value, value, value))
    assert rendition(image, 2, Colours.NONE) == [2 * character]
    assert rendition(image, 2, Colours.XTERM) == [2 * f"\x1b[38;5;{number};48;5;{number}m▀" + "\x1b[0m"]


def test_an_image_of_as_many_pixels_is_shown_as_it_is() -> None:
    pixels = noise(SIDE, SIDE)
    lines = rendition(Image.fromarray(pixels), SIDE, Colours.TRUE)
    upper = re.findall(r"38;2;(\d+);(\d+);(\d+);", lines[3])
    lower = re.findall(r"48;2;(\d+);(\d+);(\d+)m", lines[3])
    assert len(lines) == SIDE // 2
    assert np.array_equal(np.array(upper, dtype=int), pixels[6]) and np.array_equal(
        np.array(lower, dtype=int), pixels[7]
    )


@given(
    width=st.integers(1, 300), height=st.integers(1, 300), side=st.integers(1, SIDE), colours=st.sampled_from(Colours)
)
def test_any_size_fits(width: int, height: int, side: int, colours: Colours) -> None:
    lines = rendition(Image.new("RGB", (width, height)), side, colours)
    assert len({len(seen(line)) for line in lines}) == 1
    assert 1 <= len(seen(lines[0])) <= side and 1 <= len(lines) <= max(1, (side + 1) // 2)


@given(
    count=st.integers(1, 70), columns=st.integers(1, 250), height=st.integers(1, 60), colours=st.sampled_from(Colours)
)
def test_any_strip_fits_and_ends_with_the_image(count: int, columns: int, height: int, colours: Colours) -> None:
    frames = [Image.new("RGB", (30, height), "white")] * (count - 1) + [Image.new("RGB", (30, height), "black")]
    lines = strip_rendition(frames, columns, colours)
    assert all(len(seen(line)) <= columns for line in lines)
    last = {
        Colours.NONE: "@",
        Colours.XTERM: "38;5;16;48;5;16m▀\x1b[0m",
        Colours.TRUE: "38;2;0;0;0;48;2;0;0;0m▀\x1b[0m",
    }
    assert all(line.endswith(last[colours]) for line in lines)


def test_pictures_that_have_no_room_are_left_out_evenly() -> None:
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in range(9)]
    assert _reds(strip_rendition(frames, 200, Colours.TRUE)) == list(range(9))
    assert _reds(strip_rendition(frames, 5 * LEAST + 4, Colours.TRUE)) == [0, 2, 4, 6, 8]
    assert _reds(strip_rendition(frames, LEAST, Colours.TRUE)) == [8]


def _reds(lines: Sequence[str]) -> list[int]:
    return sorted({int(red) for red in re.findall(r"38;2;(\d+);", lines[0])})


# --- the command ---


@pytest.mark.parametrize("previews", [1, 6])
def test_the_strip_is_all_frames_and_says_how_it_was_made(
    previews: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = written(tmp_path / "an image.png", previews, width=64, height=48)
    assert main([str(out), "--previews", str(previews)]) == 0
    strip = tmp_path / "an image-strip.png"
    with Image.open(strip) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (48, 64 * (previews + 1) + 2 * previews, 3)
    assert np.array_equal(pixels[:, :64], noise(64, 48, 1)), "the noisiest first"
    assert np.array_equal(pixels[:, -64:], noise(64, 48, 0)), "the image last"
    assert (pixels[:, 64:66] == 255).all()
    assert read_settings(strip) == {"prompt": "noise", "previews": [1 - (i + 1) / 16 for i in range(previews)]}
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and shown.isascii(), "what is captured is no terminal"
    assert shown.endswith(f"From noise to the image: {strip}\n")


def test_an_image_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("LA", (7, 3), (0, 255)).save(tmp_path / "grey.png")
    assert main([str(tmp_path / "grey.png")]) == 0
    assert capsys.readouterr().out == ("@" * SIDE + "\n") * 14
    assert [path.name for path in tmp_path.iterdir()] == ["grey.png"]


@pytest.mark.parametrize("columns", [33, 80, 200])
def test_in_a_terminal(columns: int, tmp_path: Path) -> None:
    out = written(tmp_path / "image.png", 6)
    *shown, last = _in_terminal(columns, out, COLORTERM="truecolor")
    assert all(len(seen(line)) <= columns for line in shown)
    assert "\x1b[38;2;" in shown[0] and "▀" in shown[0]
    assert last.endswith("image-strip.png")
    assert "\x1b[38;5;" in _in_terminal(columns, out)[0]
    plain = "".join(_in_terminal(columns, out, COLORTERM="truecolor", NO_COLOR="1"))
    assert "\x1b" not in plain and "▀" not in plain


def _in_terminal(columns: int, image: Path, **environment: str) -> list[str]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    mine = {name: value for name, value in os.environ.items() if name not in ("COLORTERM", "COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.show", str(image), "--previews", "6"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=theirs, env={**mine, **XTERM, "PYTHONUTF8": "1", **environment},
    )  # fmt: skip
    os.close(theirs)
    said = b""
    with open(ours, "rb", buffering=0) as stream:  # noqa: PTH123 - it is a descriptor.
        while block := _read(stream):
            said += block
    assert process.wait() == 0
    return said.decode().splitlines()


def _read(stream: io.FileIO) -> bytes:
    try:
        return stream.read(1 << 16)
    except OSError:  # So Linux says that nobody writes any more.
        return b""


def test_what_cannot_be_shown_is_one_line_and_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = written(tmp_path / "image.png", 2)
    (tmp_path / "none.png").write_text("no image")
    Image.new("RGB", (4, 4)).save(tmp_path / "foreign.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "foreign-preview-00.png")
    for arguments, reason in [
        (["absent.png"], "cannot read absent.png as an image: No such file or directory"),
        ([str(tmp_path / "none.png")], "none.png as an image"),
        ([str(out), "--previews", "3"], "image-preview-02.png as an image"),
        ([str(tmp_path / "foreign.png"), "--previews", "1"], "foreign.png is not a PNG with ArcFlow's settings in it"),
    ]:
        assert run(main, arguments) == 2
        captured = capsys.readouterr()
        assert reason in captured.err and captured.err.count("\n") == 1 and not captured.out
    written(tmp_path / "image.png", 0, width=40)
    assert run(main, [str(out), "--previews", "2"]) == 2
    assert "differ in size" in capsys.readouterr().err
    assert not list(tmp_path.glob("*-strip.png"))


# --- make demo ---


def make_demo(out: Path, previews: int) -> subprocess.CompletedProcess[str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    # -o: what is installed is not installed again.
    words = ["make", "demo", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.base", f"OUT={out}", f"PREVIEWS={previews}"]
    return subprocess.run(words, cwd=ROOT, env=mine, capture_output=True, text=True, check=False)


def test_make_demo(tmp_path: Path) -> None:
    done = make_demo(tmp_path / "a b.png", 3)
    assert done.returncode == 0 and not done.stderr
    first, *_, strip, last = done.stdout.splitlines()
    assert re.fullmatch(r"1 x \d+x\d+ px, 2 evaluations, seed \d+, \d+\.\d\d s from start to file", first)
    assert (strip, last) == (
        f"From noise to the image: {tmp_path / 'a b-strip.png'}",
        f"The image is in {tmp_path / 'a b.png'}",
    )
    with Image.open(tmp_path / "a b.png") as image, Image.open(tmp_path / "a b-strip.png") as strip_image:
        assert strip_image.height == image.height and strip_image.width > 4 * image.width


def test_make_demo_stops_where_no_image_is_made(tmp_path: Path) -> None:
    done = make_demo(tmp_path / "image.jpg", 3)
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir())
    assert "only PNG files are written" in done.stderr
