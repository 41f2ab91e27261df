"""Opening, memory, copies, kernels, and what is rejected."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping

import numpy as np

from runtime.cuda.device.driver import describe_device, load_driver
from runtime.cuda.device.gpu import open_device
from runtime.cuda.errors import CaptureRefusedError, DeviceError, DeviceMemoryError
from runtime.cuda.interface import Bound, Unpack
from tests.runtime.cuda import parity
from tests.runtime.cuda.parity import get, put
from tests.runtime.cuda.scenarios.common import COUNT, alive, message, noise_of


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


def opening() -> None:
    """Prints what opening GPU $ORDINAL says."""
    print(message(DeviceError, lambda: open_device(int(os.environ.get("ORDINAL", "0")))))


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


def a_network_run_once() -> None:
    """What it was fed comes back from a network that copies, and nothing is left on the device."""
    from engines.schema import Network, Port  # Where a GPU is lent there may be no msgspec.
    from runtime.cuda.once import run_once

    spec = Network("copy.plan", [Port("x", "float32", ["batch", 3])], [Port("y", "float32", ["batch", 3])], "plan")
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    with open_device() as device:

        class Copying:
            name, weight_bytes, activation_bytes = "copy", 0, 100

            def bind(self, inputs: Mapping[str, Bound], outputs: Mapping[str, Bound], scratch: int) -> Copying:
                assert inputs["x"].shape == outputs["y"].shape == (2, 3) and scratch % 256 == 0
                self.places = outputs["y"].address, inputs["x"].address, values.nbytes
                return self

            def enqueue(self) -> None:
                device.copy(*self.places)

            def close(self) -> None: ...

        given = run_once(device, Copying(), spec, {"x": values})
        assert given["y"].tolist() == values.tolist()
        assert device.memory_used() == 0 and alive()[5] == 0


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


def memory() -> None:
    """The GPU has a MiB: what does not fit says what it was for, and what to do."""
    device = open_device()
    address = device.allocate(600 << 10, "the arena")
    assert device.memory_used() == 600 << 10
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
