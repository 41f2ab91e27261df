"""What `CudaDevice` does, call by call, each scenario in a process of its own: fork by fork of this one.

``python -m tests.runtime.cuda.scenarios`` reads lines of JSON, {"scenario": name, "environment": {...}}; it answers
with {"status": exit status, "said": what it printed}. libcuda is fake_driver.cpp or, for ``on_gpu``, the machine's own:
``python -m tests.runtime.cuda.scenarios on_gpu`` needs numpy and cuda-bindings alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from runtime import noise
from runtime.cuda.device.driver import describe_device, load_driver
from runtime.cuda.device.gpu import CudaDevice, open_device
from runtime.cuda.device.graphs import MOST
from runtime.cuda.errors import CaptureRefusedError, DeviceError, DeviceMemoryError
from runtime.cuda.interface import Unpack
from tests.runtime.cuda import parity
from tests.runtime.cuda.parity import get, put

COUNT = 1000


def alive() -> list[int]:
    """Graphs, events, streams, contexts, modules, blocks on the device, pinned blocks; then actions that wait."""
    counts = (ctypes.c_int * 7)()
    library = ctypes.CDLL("libcuda.so.1")
    queued = library.fake_cuda_alive(counts)
    return [*counts, queued]


def message(kind: type[Exception], action: Callable[[], object]) -> str:
    """What an action that must fail says."""
    try:
        action()
    except kind as error:
        return str(error)
    raise AssertionError("it did not fail")


def noise_of(seed: int, count: int = COUNT) -> Any:
    """The noise's first values."""
    return noise.normal_at(seed, np.arange(count, dtype=np.uint64))


def kernels() -> None:
    """All kernels, called through the driver."""
    for check in parity.CHECKS:
        with open_device() as device:
            check(device)


def describe() -> None:
    """What a GPU is, without a context on it."""
    info = describe_device(load_driver())
    assert (info.name, info.capability, info.driver) == ("fake GPU", "sm90", "13.0")
    assert (info.memory, info.l2_bytes, info.multiprocessors) == (256 << 20, 50 << 20, 132)
    assert alive()[3] == 0


def everything_is_given_back() -> None:
    """After close nothing is left, and nothing works."""
    device = open_device()
    marks = [device.mark(), device.mark()]
    address = device.allocate(4 * COUNT, "noise")
    for _ in range(3):
        device.replay("key", lambda: device.upload(address, np.ones(4, dtype=np.float32)))
    assert marks[1].seconds_since(marks[0]) >= 0
    del marks
    assert alive()[0] == 1 and alive()[2:5] == [1, 1, 1]
    device.close()
    device.close()
    assert alive() == [0] * 8, alive()
    for action in (device.synchronize, lambda: device.allocate(1, "x"), lambda: device.replay("key", lambda: None)):
        assert message(DeviceError, action) == "the device is closed"
    with open_device() as again:
        again.synchronize()
    assert alive() == [0] * 8, alive()


def nothing_waits_unasked() -> None:
    """Uploads, copies and kernels only queue; what was uploaded may change at once."""
    device = open_device()
    values = np.arange(COUNT, dtype=np.float32)
    first = device.allocate(values.nbytes, "a")
    second = device.allocate(values.nbytes, "b")
    device.upload(first, values)
    values[:] = 0
    device.copy(second, first, values.nbytes)
    device.copy(second, second, values.nbytes)
    device.mark()
    assert alive()[7] == 3
    assert np.array_equal(get(device, second, (COUNT,), np.float32), np.arange(COUNT))
    assert alive()[7] == 0
    transposed = np.arange(12, dtype=np.int64).reshape(3, 4).T
    device.upload(first, transposed)
    assert np.array_equal(get(device, first, (4, 3), np.int64), transposed)
    assert "C-contiguous" in message(DeviceError, lambda: device.download(first, np.empty((4, 4), np.float32).T))


def large_arrays() -> None:
    """More than the staging memory holds, at odd sizes, both ways, many times over."""
    device = open_device()
    random = np.random.default_rng(1)
    sizes = (1, 3, 255, 257, (4 << 20) - 1, 4 << 20, (17 << 20) + 5)
    arrays = [random.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    addresses = [put(device, values) for values in arrays]
    for values, address in zip(arrays, addresses, strict=True):
        assert np.array_equal(get(device, address, values.shape, np.uint8), values), values.size
    assert alive()[6] <= 5


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
    """Only so many graphs are kept, those that were used last."""
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


def memory() -> None:
    """The GPU has a MiB: what does not fit says what it was for, and what to do."""
    device = open_device()
    address = device.allocate(600 << 10, "the arena")
    assert device.memory_used() == 600 << 10
    assert device.free_memory() == ((1 << 20) - (600 << 10), 1 << 20)
    assert address % 256 == 0
    text = message(DeviceMemoryError, lambda: device.allocate(500 << 10, "the weights of the backbone"))
    assert "1 MiB for the weights of the backbone cannot be had (1 MiB of 1 MiB are free)" in text
    assert "--low-vram" in text
    device.free(address)
    assert "nothing was allocated at" in message(DeviceError, lambda: device.free(address))
    assert device.memory_used() == 0
    device.allocate(500 << 10, "the weights of the backbone")
    assert device.allocate(0, "nothing") > 0


def failed_work() -> None:
    """ARCFLOW_FAKE_CUDA makes waiting fail with 700: what the GPU met before."""
    device = open_device()
    text = message(DeviceError, device.synchronize)
    assert text.startswith("waiting for the GPU: work on the GPU failed, ") and "(700: " in text
    assert "start it again" in text
    device.close()
    assert alive()[2:6] == [0, 0, 0, 0]


def another_thread() -> None:
    """One thread at a time, but not always the same."""
    device = open_device()
    target = device.allocate(4 * COUNT, "noise")
    results: list[str] = []

    def turn() -> None:
        results.append(device.replay("key", lambda: device.normal(1, COUNT, target)))

    for _ in range(3):
        thread = threading.Thread(target=turn)
        thread.start()
        thread.join()
    assert results == ["eager", "recorded", "replayed"]
    assert np.array_equal(get(device, target, (COUNT,), np.float32), noise_of(1))


def bad_arguments() -> None:
    """What the device rejects by itself; the stream stays usable."""
    device = open_device()
    target = device.allocate(4 * COUNT, "noise")
    for action in (
        lambda: device.find_nonfinite(target + 4, 4, target),
        lambda: device.to_rgb8(target, target, (0, 1, 1)),
        lambda: device.unpack(Unpack(target, target, 1, 1, 1, 4, 1, scaling=(1.0,))),
    ):
        assert not isinstance(message_error(action), CaptureRefusedError)
    device.normal(1, 0, target)
    device.normal(1, COUNT, target)
    assert np.array_equal(get(device, target, (COUNT,), np.float32), noise_of(1))


def message_error(action: Callable[[], object]) -> DeviceError:
    """The error of an action that must fail."""
    try:
        action()
    except DeviceError as error:
        return error
    raise AssertionError("it did not fail")


def opening() -> None:
    """Prints what opening GPU $ORDINAL says."""
    print(message(DeviceError, lambda: open_device(int(os.environ.get("ORDINAL", "0")))))


def on_gpu() -> None:
    """A real GPU: kernels, graphs and events, and what it took, as JSON."""
    kernels()
    with open_device() as device:
        report = {"device": device.info.name, "capability": device.info.capability, "driver": device.info.driver}
        target = device.allocate(4 << 20, "noise")
        marks: list[Any] = []

        def work() -> None:
            marks[:] = [device.mark()]
            device.upload(target, np.zeros(4, dtype=np.float32))
            device.normal(5, 1 << 20, target)
            marks.append(device.mark())

        done = [device.replay("key", work) for _ in range(4)]
        assert done == ["eager", "recorded", "replayed", "replayed"], (done, device.refusals)
        made = get(device, target, (1 << 20,), np.float32)
        assert np.count_nonzero(made != noise_of(5, 1 << 20)) <= 2
        report["noise of 2^20 values, us"] = f"{1e6 * marks[1].seconds_since(marks[0]):.1f}"
        assert device.replay("waits", device.synchronize) == device.replay("waits", device.synchronize) == "eager"
        assert device.refusals["waits"]
        text = message(DeviceMemoryError, lambda: device.allocate(1 << 42, "far too much"))
        assert "for far too much cannot be had" in text
        device.synchronize()
        assert isinstance(device, CudaDevice)
    print(json.dumps(report))


def run_apart(scenario: str, environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of a scenario in a child of this process, which has not touched the driver yet."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.environ.update(environment)
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    try:
                        globals()[scenario]()
                        status = 0
                    except BaseException:  # noqa: BLE001 (it is told, and the child ends)
                        traceback.print_exc()
                said.flush()
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(ended), said.read()


def main() -> None:
    """Do the scenarios of the command line here, or answer until there are no more lines."""
    for scenario in sys.argv[1:]:
        globals()[scenario]()
    for line in () if sys.argv[1:] else sys.stdin:
        status, said = run_apart(**json.loads(line))
        print(json.dumps({"status": status, "said": said}), flush=True)


if __name__ == "__main__":
    main()
