"""``scripts/fetch-data.sh``: the pictures of npm's package, whole or not at all, on a machine whose npm is played."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch-data.sh"
PACKED = "lobehub-fluent-emoji-3d-1.1.0.tgz"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of the script, the checksum of a package of two pictures, and an npm that packs it."""
    pictures = tmp_path / "package" / "assets"
    pictures.mkdir(parents=True)
    for name in ("1f415", "2764-fe0f"):
        (pictures / f"{name}.webp").write_text(name)
    (tmp_path / "package" / "package.json").write_text("{}")
    with tarfile.open(tmp_path / PACKED, "w:gz") as packed:
        packed.add(tmp_path / "package", "package")
    shutil.copy(SCRIPT, tmp_path)
    digest = hashlib.sha256((tmp_path / PACKED).read_bytes()).hexdigest()
    (tmp_path / "emoji.sha256").write_text(f"{digest}  {PACKED}\n")
    (tmp_path / "bin").mkdir()
    for name in ("bash", "cp", "dirname", "gzip", "mkdir", "mktemp", "rm", "sha256sum", "tar", "touch"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name} here"))
    play_npm(tmp_path, f'[ "$*" = "pack --silent @lobehub/fluent-emoji-3d@1.1.0" ] && cp {tmp_path / PACKED} .')
    return tmp_path


def play_npm(place: Path, does: str) -> None:
    (place / "bin" / "npm").write_text(f"#!{shutil.which('bash')}\n{does}\n")
    (place / "bin" / "npm").chmod(0o755)


def fetch(place: Path) -> subprocess.CompletedProcess[str]:
    command = [str(place / "bin" / "bash"), str(place / SCRIPT.name), str(place / "data")]
    return subprocess.run(command, env={"PATH": str(place / "bin")}, capture_output=True, text=True, check=False)


def test_pictures_alone_are_unpacked_and_fetched_once(place: Path) -> None:
    (place / "data").mkdir()
    (place / "data" / "half.webp").write_text("of a fetch that was interrupted")
    told = f"Fluent Emoji is in {place / 'data'}\n"
    assert fetch(place).stdout == told
    assert {path.name for path in (place / "data").iterdir()} == {"1f415.webp", "2764-fe0f.webp", "complete"}
    assert (place / "data" / "1f415.webp").read_text() == "1f415"
    (place / "bin" / "npm").unlink()
    again = fetch(place)
    assert (again.returncode, again.stdout) == (0, told)


@pytest.mark.parametrize(
    ("npm", "message"),
    [
        (None, "no npm here: install Node.js"),
        ("exit 1", "npm cannot download @lobehub/fluent-emoji-3d@1.1.0; try again later"),
        (f"echo another >{PACKED}", "holds other files than the ones this project was trained on"),
    ],
)
def test_what_cannot_be_fetched_is_an_error_that_leaves_nothing(place: Path, npm: str | None, message: str) -> None:
    (place / "bin" / "npm").unlink()
    if npm is not None:
        play_npm(place, npm)
    done = fetch(place)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr.splitlines()[-1] and done.stderr.splitlines()[-1].startswith("error: ")
    assert not (place / "data").exists()
