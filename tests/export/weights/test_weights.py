"""Reading safetensors: against the format's own library, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from export.errors import WeightsError
from export.weights import files as weights
from export.weights.files import all_finite, open_file, open_folder, row_chunks, tensor_set

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


def test_rows_are_those_of_the_whole(file: Path) -> None:
    opened = tensor_set(file)
    assert torch.equal(opened.read_rows("a", 1, 2), TENSORS["a"][1:])
    assert opened.read_rows("empty", 0, 0).shape == (0, 4)
    rows = opened.rows_float32("b", 1, 3)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, torch.ones(2))
    assert opened.rows_float32("scalar", 0, 1) == 7.0


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300])
def test_rows_that_are_not_finite_as_float32_are_refused(tmp_path: Path, value: float) -> None:
    save_file({"x": torch.tensor([[1.0], [value]], dtype=torch.float64)}, tmp_path / "x.safetensors")
    opened = tensor_set(tmp_path / "x.safetensors")
    assert opened.rows_float32("x", 0, 1) == 1.0
    with pytest.raises(WeightsError, match="x has values that are not finite"):
        opened.rows_float32("x", 0, 2)


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (7,), (5, 4), (1, 100), (4, 2, 3)])
def test_runs_cover_every_row_once_and_stay_within_bounds(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "CHUNK", 2 * 4 * 4)
    runs = list(row_chunks(shape))
    count = (shape[0] if shape else 1) if torch.Size(shape).numel() else 0
    assert [row for start, stop in runs for row in range(start, stop)] == list(range(count))
    width = max(1, torch.Size(shape[1:]).numel())
    assert all(stop - start == 1 or (stop - start) * width <= 8 for start, stop in runs)


def test_a_sum_that_overflows_is_no_proof_of_infinity() -> None:
    assert all_finite(torch.full((100,), 60000.0, dtype=torch.float16))
    assert all_finite(torch.full((4,), 3e38))
    assert not all_finite(torch.tensor([1.0, float("inf"), float("-inf")]))
    assert all_finite(torch.tensor([1, 2]))
