"""CUDA graphs: recorded, replayed, rejected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from runtime.cuda.device.gpu import open_device
from runtime.cuda.device.graphs import MOST
from tests.runtime.cuda.parity import get
from tests.runtime.cuda.scenarios.common import COUNT, alive, noise_of


def graphs() -> None:
    """Eager, recorded, replayed; values recorded are copied again; work is called twice at most."""
    device = open_device()
    target = device.allocate(4 * COUNT, "noise")
    other = device.allocate(16, "values")
    calls = []
    given = np.array([1, 2, 3, 4], dtype=np.float32)

    def work() -> None:
        calls.append(1)
        device.upload(other, given[:2])
        device.upload(other + 8, given[2:])
        device.normal(5, COUNT, target)

    done = []
    for turn in range(4):
        device.upload(target, np.zeros(COUNT, dtype=np.float32))
        device.upload(other, np.zeros(4, dtype=np.float32))
        done.append(device.replay("key", work))
        if turn == 1:
            given[:] = -1
        assert np.array_equal(get(device, target, (COUNT,), np.float32), noise_of(5))
        assert get(device, other, (4,), np.float32).tolist() == [1, 2, 3, 4]
    assert done == ["eager", "recorded", "replayed", "replayed"], done
    assert len(calls) == 2 and not device.refusals
    assert device.replay(("another", 7), work) == "eager"
    device.forget()
    assert alive()[0] == 0
    assert [device.replay("key", work) for _ in range(3)] == ["eager", "recorded", "replayed"]
    device.synchronize()


def marks_in_graphs() -> None:
    """Marks of the recorded run are passed anew by each replay."""
    device = open_device()
    target = device.allocate(4 << 20, "noise")
    marks: list[Any] = []

    def work() -> None:
        marks[:] = [device.mark()]
        device.normal(5, 1 << 20, target)
        marks.append(device.mark())

    assert device.replay("key", work) == "eager"
    assert marks[1].seconds_since(marks[0]) > 0
    assert device.replay("key", work) == "recorded"
    before = device.mark()
    assert device.replay("key", work) == "replayed"
    after = device.mark()
    inside = marks[1].seconds_since(marks[0])
    assert 0 < inside <= after.seconds_since(before)
    assert marks[0].seconds_since(before) >= 0


def refused_by_the_work() -> None:
    """What cannot be recorded is done without a graph, and the reason is kept."""
    device = open_device()
    target = device.allocate(4 * COUNT, "noise")
    values = np.empty(COUNT, dtype=np.float32)
    blocks = [device.allocate(16, "x")]
    actions: dict[str, Callable[[], object]] = {
        "reading from the GPU": lambda: device.download(target, values),
        "waiting for the GPU": device.synchronize,
        "allocating memory": lambda: blocks.append(device.allocate(16, "x")),
        "freeing memory": lambda: device.free(blocks.pop()),
    }
    for reason, action in actions.items():
        calls = []

        def work(action: Callable[[], object] = action, calls: list[int] = calls) -> None:
            calls.append(1)
            device.normal(len(calls), COUNT, target)
            action()

        assert [device.replay(reason, work) for _ in range(3)] == ["eager"] * 3
        assert len(calls) == 4  # The rejected attempt is the second.
        assert reason in device.refusals[reason], device.refusals
        assert np.array_equal(get(device, target, (COUNT,), np.float32), noise_of(4))
    assert alive()[0] == 0


def refused_uploads() -> None:
    """A run that copies more than the first cannot be recorded."""
    device = open_device()
    target = device.allocate(1 << 16, "values")
    sizes = iter((16, 4096, 4096, 32))
    written = []

    def work() -> None:
        written.append(next(sizes))
        device.upload(target, np.full(written[-1], len(written), dtype=np.uint8))

    assert device.replay("key", work) == "eager"
    assert device.replay("key", work) == "eager"
    assert "more is copied to the GPU than in the first run" in device.refusals["key"]
    assert get(device, target, (4096,), np.uint8).tolist() == [3] * 4096
    assert device.replay("key", work) == "eager"


def refused_by_the_driver() -> None:
    """ARCFLOW_FAKE_CUDA makes a graph call fail: the work is done all the same, as often as it is asked for."""
    device = open_device()
    target = device.allocate(4 * COUNT, "noise")
    done = [device.replay("key", lambda: device.normal(9, COUNT, target)) for _ in range(4)]
    assert done == ["eager"] * 4, done
    assert device.refusals["key"]
    assert np.array_equal(get(device, target, (COUNT,), np.float32), noise_of(9))
    assert alive()[0] == 0
    print(device.refusals["key"])


def failing_work() -> None:
    """An error that is no rejection ends the recording and comes out; the stream works on."""
    device = open_device()
    target = device.allocate(4 * COUNT, "noise")
    for error in (ValueError("a bug"), KeyboardInterrupt()):
        turns = iter((None, error, None, None))

        def work(turns: Any = turns) -> None:
            device.normal(3, COUNT, target)
            if (wrong := next(turns)) is not None:
                raise wrong

        assert device.replay("key", work) == "eager"
        try:
            device.replay("key", work)
        except (ValueError, KeyboardInterrupt) as raised:
            assert raised is error
        else:
            raise AssertionError("it did not fail")
        assert alive()[0] == 0
        assert [device.replay("key", work) for _ in range(2)] == ["eager", "recorded"]
        assert np.array_equal(get(device, target, (COUNT,), np.float32), noise_of(3))
        device.forget()
    assert not device.refusals


def work_inside_work() -> None:
    """A recording inside another is a part of it."""
    device = open_device()
    target = device.allocate(4 * COUNT, "noise")
    inner: list[str] = []

    def outer() -> None:
        inner.append(device.replay("inner", lambda: device.upload(target, np.full(COUNT, 2, dtype=np.float32))))

    assert [device.replay("outer", outer) for _ in range(3)] == ["eager", "recorded", "replayed"]
    assert inner == ["eager", "eager"]
    assert get(device, target, (COUNT,), np.float32).tolist() == [2] * COUNT


def many_keys() -> None:
    """Only so many graphs are cached, those that were used last."""
    device = open_device()
    target = device.allocate(4 * COUNT, "noise")

    def run(key: int) -> str:
        return device.replay(key, lambda: device.normal(key, COUNT, target))

    for key in range(MOST):
        assert [run(key), run(key)] == ["eager", "recorded"]
    assert alive()[0] == MOST
    assert run(0) == "replayed"
    assert run(MOST) == "eager"  # Key 1 makes room.
    assert alive()[0] == MOST - 1
    assert run(0) == "replayed"
    assert run(1) == "eager"
    assert get(device, target, (COUNT,), np.float32).tolist() == noise_of(1).tolist()
