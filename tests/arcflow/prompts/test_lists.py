"""Prompts from every kind of source, and one clear error for whatever is wrong with one."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from arcflow.errors import PromptsError
from arcflow.prompts.lists import SHIPPED, Joined, digest, open_prompts, shipped

WANTED = ["a red fox", "一只黑色的包", 'a sign that says "hello"']


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_text(folder: Path) -> Path:
    path = folder / "prompts.txt"
    path.write_text("\ufeff# a comment\n" + "\n\n".join(WANTED), encoding="utf-8")
    return path


def write_json(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    rows = [{"id": n, "caption": prompt} for n, prompt in enumerate((*WANTED[:2], " ", WANTED[2]))]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    return path


def write_shards(folder: Path) -> Path:
    """Two shards: captions as text, as JSON, and in both; images, a blank caption, a sample without one."""
    shards = folder / "shards"
    shards.mkdir()
    image = bytes(2000)
    write_tar(shards / "a-000.tar", {
        "0/001.jpg": image, "0/001.txt": WANTED[0].encode(), "0/001.json": b'{"caption": "not this one"}',
        "0/002.jpg": image, "0/002.txt": b" \n", "0/003.jpg": image,
    })  # fmt: skip
    rest = {f"x{n}.json": json.dumps({"prompt": prompt}).encode() for n, prompt in enumerate(WANTED[1:])}
    write_tar(shards / "a-001.tar", {"x0.png": image, **rest})
    return shards


def write_parquet(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is optional, and not installed")
    from pyarrow import parquet

    tables = folder / "tables"
    tables.mkdir()
    for name, rows in (("a", [WANTED[0], None]), ("b", ["  ", *WANTED[1:]])):
        parquet.write_table(pyarrow.table({"url": ["u"] * len(rows), "text": rows}), tables / f"{name}.parquet")
    return tables


def write_saved(folder: Path) -> Path:
    """As ``datasets`` saves a dictionary of data sets: its two description files, and Arrow streams."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is optional, and not installed")
    for split, parts in {"test": [["not this"]], "train": [[WANTED[0], ""], WANTED[1:]]}.items():
        here = folder / "saved" / split
        here.mkdir(parents=True)
        names = [f"data-{n:05d}-of-{len(parts):05d}.arrow" for n in range(len(parts))]
        for name, rows in zip(names, parts, strict=True):
            table = pyarrow.table({"size": list(range(len(rows))), "prompt": rows})
            with pyarrow.ipc.new_stream(here / name, table.schema) as stream:
                stream.write_table(table)
        (here / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "saved" / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    return folder / "saved"


SOURCES: dict[str, Callable[[Path], Path]] = {
    "text": write_text, "jsonl": write_json, "shards": write_shards, "parquet": write_parquet, "saved": write_saved,
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_its_prompts_by_number(kind: str, tmp_path: Path) -> None:
    prompts = open_prompts([SOURCES[kind](tmp_path)])
    assert list(prompts) == WANTED and len(prompts) == 3 and prompts[1] == WANTED[1]
    with pytest.raises(IndexError):
        prompts[3]
    assert digest(prompts) == digest(WANTED) != digest(WANTED[:2])


def test_sources_are_joined_in_their_order(tmp_path: Path) -> None:
    both = open_prompts([str(write_text(tmp_path)), str(write_json(tmp_path))])
    assert isinstance(both, Joined) and list(both) == WANTED * 2


def test_a_named_key_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "no", "long": "yes"}\n')
    assert list(open_prompts([path], "long")) == ["yes"] and list(open_prompts([path])) == ["no"]


def test_the_lists_that_come_with_the_project() -> None:
    assert shipped() == ["chinese", "default"]
    english, chinese = open_prompts(["default"]), open_prompts(["chinese"])
    assert len(english) + len(chinese) > 200
    assert all(prompt.isascii() for prompt in english) and not any(prompt.isascii() for prompt in chinese)
    for prompts in (english, chinese):
        assert len(set(prompts)) == len(prompts)
    assert (SHIPPED / "default.txt").read_text().startswith("#")


def _text(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _folder(folder: Path) -> Path:
    (folder / "nothing").mkdir()
    return folder / "nothing"


FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none.txt", "there are no prompts at .* or a name: chinese, default"),
    "another kind": (_text("prompts.csv", b"a"), "none of the kinds .* give a .txt, .jsonl"),
    "an empty folder": (_folder, "holds no data set"),
    "no prompts": (_text("prompts.txt", b"\n# only this\n"), "has no prompts"),
    "no UTF-8": (_text("prompts.txt", b"one\n\xff\xfe\n"), "line 2 of .* is not UTF-8"),
    "no JSON": (_text("prompts.jsonl", b'{"prompt": "a"}\n{"prompt'), "line 2 of .* is no JSON"),
    "no object": (_text("prompts.jsonl", b'["a"]'), "line 1 of .* is no JSON object"),
    "no key": (_text("prompts.jsonl", b'{"title": "a"}'), "has none of prompt, caption, text .*title.*--prompt-key"),
    "no text": (_text("prompts.jsonl", b'{"prompt": 3}'), "prompt is 3; it must be a text"),
    "no shard": (_text("prompts.tar", b"not a tar at all"), "cannot read the shard .*plain .tar"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said(fault: str, tmp_path: Path) -> None:
    write, words = FAULTS[fault]
    with pytest.raises(PromptsError, match=words):
        open_prompts([write(tmp_path)])


def test_a_key_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match=r"has no title .*caption"):
        open_prompts([write_json(tmp_path)], "title")


@pytest.mark.parametrize("source", ["a.parquet", "saved"])
def test_a_library_that_is_not_installed_is_named(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(PromptsError, match="pip install pyarrow"):
        open_prompts([tmp_path / source])


@pytest.mark.parametrize(("name", "content"), [("a.parquet", b"no table"), ("saved/state.json", b"{}")])
def test_damaged_columns_are_an_error(name: str, content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is optional, and not installed")
    (tmp_path / "saved").mkdir()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptsError, match=r"cannot read the prompts|does not describe"):
        open_prompts([tmp_path / name.partition("/")[0]])


def test_a_list_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write_text(tmp_path)
    prompts = open_prompts([path])
    path.unlink()
    with pytest.raises(PromptsError, match="any more"):
        prompts[0]


def test_without_prompts_nothing_opens() -> None:
    with pytest.raises(PromptsError, match="no prompts are named"):
        open_prompts([])
