"""Cached encodings: what was put in comes out, the least recently used goes first, memory stays as planned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from runtime.cuda.memory.encodings import CachedEncodings, DeviceEncodings, HostEncodings, PartSize
from runtime.errors import BackendError
from tests.runtime.cuda.stand_in import StandInDevice

PARTS = {"pooled": PartSize(1, 64), "sequence": PartSize(4, 32)}
KINDS = [DeviceEncodings, HostEncodings]
Make = Callable[..., CachedEncodings]


def _put(device: StandInDevice, store: CachedEncodings, prompt: str, value: int, tokens: int = 4) -> None:
    source = device.allocate(256, "test")
    device.upload(source, np.full(256, value, dtype=np.uint8))
    store.put(prompt, "pooled", source, 1)
    store.put(prompt, "sequence", source, tokens)
    device.free(source)


def _get(device: StandInDevice, store: CachedEncodings, prompt: str, part: str) -> list[int]:
    target = device.allocate(256, "test")
    device.upload(target, np.zeros(256, dtype=np.uint8))
    store.fetch(prompt, part, target)
    found = np.empty(256, dtype=np.uint8)
    device.download(target, found)
    device.free(target)
    return [int(value) for value in found]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_put_in_comes_out(kind: Make) -> None:
    device = StandInDevice(1 << 20)
    store = kind(device, PARTS, 3)
    for value in (1, 2, 3):
        _put(device, store, str(value), value, tokens=value)
    for value in (3, 1, 2):
        assert _get(device, store, str(value), "pooled") == [value] * 64 + [0] * 192
        assert _get(device, store, str(value), "sequence") == [value] * 32 * value + [0] * (256 - 32 * value)
        assert store.tokens(str(value), "sequence") == value


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_recently_used_goes(kind: Make) -> None:
    device = StandInDevice(1 << 20)
    store = kind(device, PARTS, 2)
    _put(device, store, "a", 1)
    _put(device, store, "b", 2)
    assert store.missing(["a", "x", "x"]) == ["x"], "asking for it counts as use"
    _put(device, store, "c", 3)
    assert store.missing(["a", "b", "c"]) == ["b"]
    assert _get(device, store, "a", "pooled")[0] == 1
    assert _get(device, store, "c", "pooled")[0] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_half_an_encoding_is_none(kind: Make) -> None:
    device = StandInDevice(1 << 20)
    store = kind(device, PARTS, 2)
    store.put("a", "pooled", device.allocate(256, "test"), 1)
    assert store.missing(["a"]) == ["a"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_could_not_be_taken_over_is_not_there(kind: Make) -> None:
    device = StandInDevice(1 << 20)
    store = kind(device, PARTS, 1)
    source = device.allocate(256, "test")
    store.put("a", "pooled", source, 1)
    with pytest.raises(BackendError):
        store.put("a", "sequence", source + (1 << 19), 4)
    assert store.missing(["a"]) == ["a"]
    _put(device, store, "b", 2)
    assert _get(device, store, "b", "sequence")[:3] == [2, 2, 2], "its place is free again"


@pytest.mark.parametrize("kind", KINDS)
def test_more_tokens_than_there_is_room_for(kind: Make) -> None:
    device = StandInDevice(1 << 20)
    store = kind(device, PARTS, 2)
    with pytest.raises(BackendError, match="5 tokens for 'sequence'; at most 4"):
        store.put("a", "sequence", device.allocate(256, "test"), 5)
    with pytest.raises(BackendError, match="0 encodings"):
        kind(device, PARTS, 0)


def test_memory_is_taken_once_and_given_back() -> None:
    device = StandInDevice(1 << 20)
    store = DeviceEncodings(device, PARTS, 5)
    assert store.device_bytes == device.memory_used() == 5 * 512
    for value in range(20):
        _put(device, store, str(value), value)
    assert device.memory_used() == 5 * 512
    store.close()
    store.close()
    assert store.device_bytes == device.memory_used() == 0


def test_only_the_device_store_does_not_wait() -> None:
    device = StandInDevice(1 << 20)
    source = device.allocate(256, "test")
    for store, waits in ((DeviceEncodings(device, PARTS, 2), 0), (HostEncodings(device, PARTS, 2), 1)):
        before = device.waits
        store.put("a", "pooled", source, 1)
        store.fetch("a", "pooled", source)
        assert device.waits - before == waits
