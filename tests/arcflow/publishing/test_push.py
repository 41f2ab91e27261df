"""``--push-to-hub``: the hub's own library against a small hub on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from arcflow import distill
from arcflow.adapter import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from foundation.cli import run
from tests.arcflow.publishing.small_hub import OWNER, READER, WRITER, SmallHub, serving

NAME = f"{OWNER}/two-steps"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield hub


@pytest.fixture
def command(teacher_path: Path, tmp_path: Path) -> list[str]:
    recipe = tmp_path / "short.toml"
    recipe.write_text(
        "extends = 'tiny'\nname = 'short'\n[student]\nrank = 2\nmodes = 3\n[distill]\n"
        "loop = { iterations = 2, batch = 2, lr = 1e-3, save_every = 1, precision = 'fp32' }\n"
    )
    places = ["--base", str(teacher_path), "--workdir", str(tmp_path / "work")]
    return ["--recipe", str(recipe), *places, "--device", "cpu", "--push-to-hub", NAME]


def adapter(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "work" / "arcflow-adapter").iterdir()}


@pytest.mark.parametrize("mode", ["lfs", "regular"])
def test_the_adapter_is_uploaded(
    mode: str, hub: SmallHub, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As a large file; and, small, through the pipeline that the library has for its own storage."""
    hub.upload_mode = mode
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", mode == "lfs")
    assert run(distill.main, command) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "work" / "arcflow-adapter")
    assert f"{hub.url}/{NAME}/commit/" in said.err
    assert hub.visibility == {NAME: "private"}
    assert hub.files[NAME] == adapter(tmp_path)
    assert hub.files[NAME].keys() == {CARD_FILE, CONFIG_FILE, WEIGHTS_FILE}
    assert bool(hub.objects) is (mode == "lfs")
    card = hub.files[NAME][CARD_FILE].decode()
    assert f'load_student(pipe, "{NAME}")' in card and f"--adapter {NAME}" in card and str(tmp_path) not in card


def _refuse(what: str, status: int) -> Callable[[SmallHub, pytest.MonkeyPatch], object]:
    return lambda hub, patch: hub.refused.update({what: status})


UNABLE: dict[str, tuple[Callable[[SmallHub, pytest.MonkeyPatch], object], list[str], str]] = {
    "no token": (lambda hub, patch: patch.delenv("HF_TOKEN"), [], "needs a token of the hub that may write: run `hf"),
    "another token": (lambda hub, patch: patch.setenv("HF_TOKEN", "hf_x"), [], "does not accept the token"),
    "a reader's token": (lambda hub, patch: patch.setenv("HF_TOKEN", READER), [], "the token may not write there"),
    "of somebody else": (lambda hub, patch: None, ["--push-to-hub", "another/name"], "the token may not write there"),
    "one that is there, and not to be written": (_refuse("write", 403), [], "the token may not write there"),
    "no name": (lambda hub, patch: None, ["--push-to-hub", "name"], "is no name of a repository: it must be USER/NAME"),
    "a folder": (lambda hub, patch: None, ["--push-to-hub", "a/b/c"], "is no name of a repository: it must be USER"),
    "a wrong name": (lambda hub, patch: None, ["--push-to-hub", "a/b--c"], "is no name of a repository: Cannot have"),
    "no connection": (
        lambda hub, patch: patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9"), [], "leave --push-to-hub out",
    ),
    "out of order": (_refuse("create", 500), [], "not today"),
}  # fmt: skip


@pytest.mark.parametrize("why", UNABLE)
def test_what_will_not_be_uploaded_is_not_trained(
    why: str, hub: SmallHub, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    change, options, words = UNABLE[why]
    change(hub, monkeypatch)
    assert run(distill.main, [*command, *options]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and words in message
    assert not (tmp_path / "work").exists()


def test_a_dry_run_asks_the_hub_nothing(hub: SmallHub, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(distill.main, [*command, "--dry-run"]) == 0
    assert hub.asked == [] and "2 images of 64x64" in capsys.readouterr().out


def test_an_upload_that_fails_loses_nothing_and_is_done_by_the_same_command(
    hub: SmallHub, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refused["batch"] = 403
    assert run(distill.main, command) == 2
    said = capsys.readouterr()
    folder = tmp_path / "work" / "arcflow-adapter"
    assert said.out.strip() == str(folder)
    error = said.err.splitlines()[-1]
    assert f"the adapter is saved in {folder}, and was not uploaded to {NAME}" in error
    assert f"`hf upload {NAME} {folder}`" in error
    assert adapter(tmp_path).keys() == {CARD_FILE, CONFIG_FILE, WEIGHTS_FILE} and hub.files[NAME] == {}
    state = tmp_path / "work" / "distill-arcflow" / "checkpoints" / "2" / "run.json"
    written = state.stat().st_mtime_ns
    hub.refused.clear()
    assert run(distill.main, command) == 0
    assert hub.files[NAME] == adapter(tmp_path)
    assert state.stat().st_mtime_ns == written
    capsys.readouterr()
