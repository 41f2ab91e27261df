"""Reading and writing safetensors: against the format's own library, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.errors import WeightsError
from export.tensor_writer import Entry, TensorWriter
from export.weights import open_file, open_folder
from foundation.files import sha256_file

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(7, dtype=torch.int64),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def test_reads_what_the_library_wrote(file: Path) -> None:
    opened = open_file(file)
    assert set(opened.tensors) == set(TENSORS)
    assert opened.metadata == {"format": "pt"}
    for name, tensor in TENSORS.items():
        read = opened.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    names = {"a": "F32", "b": "BF16", "empty": "F32", "scalar": "I64"}
    entries = [Entry(name, dtype, tuple(TENSORS[name].shape)) for name, dtype in names.items()]
    with TensorWriter(path, entries, {"format": "pt"}) as writer:
        for name in names:
            writer.write(name, TENSORS[name])
    assert writer.hexdigest() == sha256_file(path)
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


def test_the_writer_holds_its_caller_to_the_announcement(tmp_path: Path) -> None:
    entries = [Entry("a", "F32", (2, 3)), Entry("b", "BF16", (4,))]
    with pytest.raises(WeightsError, match="announced next"), TensorWriter(tmp_path / "x", entries) as writer:
        writer.write("b", TENSORS["b"])
    with (
        pytest.raises(WeightsError, match="b was announced but not written"),
        TensorWriter(tmp_path / "y", entries) as w,
    ):
        w.write("a", TENSORS["a"])
    with pytest.raises(WeightsError, match="twice"):
        TensorWriter(tmp_path / "z", entries + entries)


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_truncated_file_is_named(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model\.safetensors.*(truncated|damaged)"):
        open_file(file)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
    ],
)
def test_a_damaged_header_is_an_error(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(WeightsError, match=r"bad\.safetensors"):
        open_file(path)


def shard(folder: Path) -> None:
    """The tensors in two shards with their index."""
    homes = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(TENSORS)}
    for home in set(homes.values()):
        save_file({name: TENSORS[name] for name in TENSORS if homes[name] == home}, folder / home)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))


def test_shards_read_as_one(tmp_path: Path) -> None:
    shard(tmp_path)
    tensors = open_folder(tmp_path)
    assert set(tensors) == set(TENSORS)
    assert all(torch.equal(tensors.read(name), tensor) for name, tensor in TENSORS.items())
    assert tensors.size == sum(tensor.nbytes for tensor in TENSORS.values())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shard(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-1\.safetensors"):
        open_folder(tmp_path)


def test_an_index_may_not_leave_its_folder(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(WeightsError, match="plain file name"):
        open_folder(tmp_path)


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="found: none"):
        open_folder(tmp_path)
    with pytest.raises(WeightsError, match="no folder"):
        open_folder(tmp_path / "nowhere")
