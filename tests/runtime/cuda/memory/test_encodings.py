"""Cached encodings: what was put in comes out, the least recently used goes first, memory stays as planned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from engines.memory.parts import PartSize
from runtime.cuda.memory.encodings import CachedEncodings, DeviceEncodings, HostEncodings
from runtime.errors import BackendError
from tests.runtime.cuda.stand_in import StandInDevice

KINDS = [DeviceEncodings, HostEncodings]
Make = Callable[..., CachedEncodings]


def _parts(most: int) -> dict[str, PartSize]:
    return {"pooled": PartSize(1, 64, most), "sequence": PartSize(4, 32, most)}


def _put(device: StandInDevice, store: CachedEncodings, prompt: str, value: int, tokens: int = 4) -> None:
    source = device.allocate(256, "test")
    device.upload(source, np.full(256, value, dtype=np.uint8))
    store.put("pooled", prompt, source, 1)
    store.put("sequence", prompt, source, tokens)
    device.free(source)


def _get(device: StandInDevice, store: CachedEncodings, prompt: str, part: str) -> list[int]:
    target = device.allocate(256, "test")
    device.upload(target, np.zeros(256, dtype=np.uint8))
    store.fetch(part, prompt, target)
    found = np.empty(256, dtype=np.uint8)
    device.download(target, found)
    device.free(target)
    return [int(value) for value in found]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_put_in_comes_out(kind: Make) -> None:
    device = StandInDevice(1 << 20)
    store = kind(device, _parts(3))
    for value in (1, 2, 3):
        _put(device, store, str(value), value, tokens=value)
    for value in (3, 1, 2):
        assert _get(device, store, str(value), "pooled") == [value] * 64 + [0] * 192
        assert _get(device, store, str(value), "sequence") == [value] * 32 * value + [0] * (256 - 32 * value)
        assert store.tokens("sequence", str(value)) == value
    _put(device, store, "2", 9, tokens=1)
    assert _get(device, store, "2", "sequence") == [9] * 32 + [0] * 224, "put in again"
    assert store.missing("sequence", "123") == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_recently_used_goes(kind: Make) -> None:
    device = StandInDevice(1 << 20)
    store = kind(device, _parts(2))
    _put(device, store, "a", 1)
    _put(device, store, "b", 2)
    for part in ("pooled", "sequence"):
        assert store.missing(part, ["a", "x", "x"]) == ["x"], "asking for it counts as use"
    _put(device, store, "c", 3)
    assert store.missing("pooled", ["a", "b", "c"]) == store.missing("sequence", ["a", "b", "c"]) == ["b"]
    assert _get(device, store, "a", "pooled")[0] == 1
    assert _get(device, store, "c", "pooled")[0] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_each_part_has_keys_and_room_of_its_own(kind: Make) -> None:
    device = StandInDevice(1 << 20)
    store = kind(device, {**_parts(1), "rows": PartSize(1, 64, 3)})
    _put(device, store, "a", 7)
    source = device.allocate(256, "test")
    for row in range(3):
        device.upload(source, np.full(64, row, dtype=np.uint8))
        store.put("rows", ("a", row), source, 1)
    assert store.missing("rows", [("a", row) for row in range(4)]) == [("a", 3)]
    assert [_get(device, store, ("a", row), "rows")[0] for row in range(3)] == [0, 1, 2]  # type: ignore[arg-type]
    assert _get(device, store, "a", "sequence")[0] == 7


@pytest.mark.parametrize("kind", KINDS)
def test_what_could_not_be_taken_over_is_not_there(kind: Make) -> None:
    device = StandInDevice(1 << 20)
    store = kind(device, _parts(1))
    source = device.allocate(256, "test")
    store.put("pooled", "a", source, 1)
    with pytest.raises(BackendError):
        store.put("sequence", "a", source + (1 << 19), 4)
    assert (store.missing("pooled", ["a"]), store.missing("sequence", ["a"])) == ([], ["a"])
    _put(device, store, "b", 2)
    assert _get(device, store, "b", "sequence")[:3] == [2, 2, 2], "its place is free again"


@pytest.mark.parametrize("kind", KINDS)
def test_more_tokens_than_there_is_room_for(kind: Make) -> None:
    device = StandInDevice(1 << 20)
    store = kind(device, _parts(2))
    with pytest.raises(BackendError, match="5 tokens for 'sequence'; at most 4"):
        store.put("sequence", "a", device.allocate(256, "test"), 5)
    with pytest.raises(BackendError, match="0 encodings"):
        kind(device, {**_parts(1), "rows": PartSize(1, 64, 0)})


def test_memory_is_taken_once_and_given_back() -> None:
    device = StandInDevice(1 << 20)
    parts = _parts(5)
    store = DeviceEncodings(device, {**parts, "pooled": replace(parts["pooled"], most=2)})
    assert store.device_bytes == device.memory_used() == (5 + 2) * 256
    for value in range(20):
        _put(device, store, str(value), value)
    assert device.memory_used() == (5 + 2) * 256
    store.close()
    store.close()
    assert store.device_bytes == device.memory_used() == 0


def test_main_memory_takes_all_of_a_request() -> None:
    device = StandInDevice(1 << 20)
    store = HostEncodings(device, _parts(1))
    store.grow(4, {"sequence": 2})
    store.grow(3, {})
    for value in range(8):
        _put(device, store, str(value), value)
    assert store.missing("pooled", map(str, range(8))) == ["0", "1", "2", "3"]
    assert store.missing("sequence", map(str, range(8))) == []


def test_only_the_device_store_does_not_wait() -> None:
    device = StandInDevice(1 << 20)
    source = device.allocate(256, "test")
    for store, waits in ((DeviceEncodings(device, _parts(2)), 0), (HostEncodings(device, _parts(2)), 1)):
        before = device.waits
        store.put("pooled", "a", source, 1)
        store.fetch("pooled", "a", source)
        assert device.waits - before == waits
