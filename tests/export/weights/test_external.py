"""External data: the format's own library reads it, kills and damage cost only what they touched, disks may reject."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from export.errors import ExportError, WeightsError
from export.weights import external
from export.weights.external import StoredFile, write_external
from export.weights.files import DTYPES, open_file
from export.weights.layout import ALIGNMENT, Entry, layout, raw
from foundation.files import sha256_file

ROOT = Path(__file__).parents[3]
DTYPES_USED = ("F8_E4M3", "F32", "BF16", "F16", "F8_E4M3", "I64", "F32")
SHAPES = ((5, 3), (7,), (3, 3), (), (9,), (2,), (0, 4))
ENTRIES = [Entry(f"t{i}", d, s) for i, (d, s) in enumerate(zip(DTYPES_USED, SHAPES, strict=True))]
TENSORS = {
    entry.name: torch.arange(-3, entry.size // DTYPES[entry.dtype][1] - 3)
    .reshape(entry.shape)
    .to(getattr(torch, DTYPES[entry.dtype][0]))
    for entry in ENTRIES
}


class Source:
    """Gives tensors in runs of two rows and counts what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, name: str) -> Iterator[torch.Tensor]:
        self.asked.append(name)
        tensor = TENSORS[name]
        yield from [tensor] if tensor.ndim == 0 else tensor.split(2)


def write(path: Path, source: Source | None = None, identity: str = "") -> StoredFile:
    return write_external(path, ENTRIES, source or Source(), identity)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of an uninterrupted run."""
    return write(tmp_path_factory.mktemp("whole") / "x.safetensors").path.read_bytes()


def test_the_library_reads_it_and_every_tensor_is_aligned(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.safetensors"
    seen: list[tuple[str, int, int]] = []
    stored = write_external(path, ENTRIES, Source(), report=lambda *event: seen.append(event))
    loaded = load_file(path)
    assert set(loaded) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert bytes(raw(loaded[name])) == bytes(raw(tensor))
        assert loaded[name].shape == tensor.shape
    assert (stored.sha256, stored.size) == (sha256_file(path), path.stat().st_size)
    places = layout(ENTRIES)
    assert places.size == stored.size
    assert min(places.offsets.values()) % ALIGNMENT == 0
    for entry in ENTRIES:
        assert places.offsets[entry.name] % DTYPES[entry.dtype][1] == 0
        assert places.offsets[entry.name] == open_file(path).tensors[entry.name].offset
    assert {phase for phase, _, _ in seen} == {"write", "check"}
    assert all(done <= total == stored.size for _, done, total in seen)
    assert seen[-1] == ("check", stored.size, stored.size)
    assert sorted(p.name for p in path.parent.iterdir()) == ["x.safetensors", "x.safetensors.journal"]


def test_what_is_given_must_be_what_was_announced(tmp_path: Path) -> None:
    entry = Entry("a", "F32", (4,))
    for tensor, message in (
        (torch.zeros(3), "4 bytes less"),
        (torch.zeros(5), "other size"),
        (torch.zeros(4).int(), "int32"),
    ):
        with pytest.raises(ExportError, match=message):
            write_external(tmp_path / "x", [entry], lambda _, t=tensor: [t])  # type: ignore[misc]
    with pytest.raises(WeightsError, match="twice"):
        layout([entry, entry])


KILLED = """
import os, signal, sys
from pathlib import Path
from export.weights.external import write_external
from tests.export.weights.test_external import ENTRIES, Source
class Mortal(Source):
    def __call__(self, name):
        for number, run in enumerate(super().__call__(name)):
            if name == "t4" and number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield run
write_external(Path(sys.argv[1]), ENTRIES, Mortal())
"""


def test_a_killed_run_is_continued(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.safetensors"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, env={**os.environ}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    assert path.with_name("x.safetensors.part").stat().st_size == len(whole)
    source = Source()
    stored = write(path, source)
    assert source.asked == ["t4", "t5", "t6"], "what was finished must not be made again"
    assert path.read_bytes() == whole
    assert stored.sha256 == sha256_file(path)


def interrupt(path: Path, at: str) -> None:
    """Begin the file and stop before the entry ``at``."""

    class Stop(Source):
        def __call__(self, name: str) -> Iterator[torch.Tensor]:
            if name == at:
                raise KeyboardInterrupt
            return super().__call__(name)

    with pytest.raises(KeyboardInterrupt):
        write(path, Stop())


def test_damage_to_what_was_finished_is_found_and_mended(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.safetensors"
    interrupt(path, "t5")
    part = path.with_name("x.safetensors.part")
    data = bytearray(part.read_bytes())
    data[layout(ENTRIES).offsets["t1"]] ^= 1
    data[9] ^= 1  # in the header
    part.write_bytes(data)
    source = Source()
    write(path, source)
    assert source.asked == ["t5", "t6", "t1"]
    assert path.read_bytes() == whole


def test_a_torn_line_of_the_journal_costs_its_tensor_only(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.safetensors"
    interrupt(path, "t5")
    journal = path.with_name("x.safetensors.journal")
    journal.write_bytes(journal.read_bytes()[:-7])
    source = Source()
    write(path, source)
    assert source.asked == ["t4", "t5", "t6"]
    assert path.read_bytes() == whole
    assert all(json.loads(line) for line in journal.read_text().splitlines())


@pytest.mark.parametrize("damage", ["journal", "part", "size", "identity"])
def test_what_was_begun_otherwise_is_begun_anew(tmp_path: Path, whole: bytes, damage: str) -> None:
    path = tmp_path / "x.safetensors"
    interrupt(path, "t5")
    part, journal = (path.with_name(f"{path.name}.{suffix}") for suffix in ("part", "journal"))
    if damage == "journal":
        journal.write_text("{}\n" + journal.read_text())
    elif damage == "part":
        part.unlink()
    elif damage == "size":
        part.write_bytes(part.read_bytes()[:-1])
    source = Source()
    write(path, source, "another" if damage == "identity" else "")
    assert source.asked == [entry.name for entry in ENTRIES]
    assert path.read_bytes() == whole


def test_a_finished_file_is_kept_until_it_is_altered(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.safetensors"
    first, source = write(path), Source()
    assert write(path, source) == first
    assert source.asked == []
    path.write_bytes(whole[:-1] + b"!")
    write(path, source)
    assert len(source.asked) == len(ENTRIES)
    assert path.read_bytes() == whole


def test_a_kill_between_the_last_line_and_the_new_name_costs_nothing(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.safetensors"
    write(path)
    path.rename(path.with_name("x.safetensors.part"))
    source = Source()
    write(path, source)
    assert source.asked == []
    assert path.read_bytes() == whole


def test_a_full_disk_is_one_clear_error_and_nothing_is_begun(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    entry = Entry("huge", "U8", (2 * free,))
    with pytest.raises(ExportError, match=r"no room for .*x\.safetensors, which has .* bytes; free some"):
        write_external(tmp_path / "x.safetensors", [entry], Source())
    assert not list(tmp_path.iterdir())


def test_a_closed_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot write .*x\.safetensors: (File exists|Not a directory); choose"):
        write(tmp_path / "file" / "x.safetensors")


def test_a_disk_that_does_not_keep_what_is_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = external._Part.write

    def forget(self: external._Part, entry: Entry, runs: Iterator[torch.Tensor]) -> str:
        digest = right(self, entry, runs)
        data = bytearray(self.path.read_bytes())
        data[self.places.offsets["t1"]] = 1
        self.path.write_bytes(data)
        return digest

    monkeypatch.setattr(external._Part, "write", forget)
    with pytest.raises(ExportError, match="t1 reads back other than it was written, 3 times"):
        write(tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()
