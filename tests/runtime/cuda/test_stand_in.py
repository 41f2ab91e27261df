"""The stand-in device keeps to the interface: what the other tests rest on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest

from runtime.cuda.device.gpu import CudaDevice
from runtime.cuda.errors import DeviceError, DeviceMemoryError
from runtime.cuda.interface import Device
from tests.runtime.cuda import host_library, parity
from tests.runtime.cuda.parity import get, put
from tests.runtime.cuda.stand_in import StandInDevice

SOURCE = pytest.param("source", marks=pytest.mark.skipif(host_library.compiler() is None, reason="no C++ compiler"))


@pytest.mark.parametrize("kernels", [SOURCE, "numpy"])
@pytest.mark.parametrize("check", parity.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_kernels(check: Callable[[Device], None], kernels: Literal["source", "numpy"]) -> None:
    check(StandInDevice(kernels=kernels))


@pytest.mark.skipif(host_library.compiler() is None, reason="no C++ compiler")
def test_numpy_and_source_agree() -> None:
    results = []
    for kernels in ("numpy", "source"):
        device = StandInDevice(kernels=kernels)  # type: ignore[arg-type]
        noise = device.allocate(4 * 5000, "noise")
        device.normal(11, 5000, noise)
        results.append(get(device, noise, (5000,), np.float32))
    np.testing.assert_allclose(*results, rtol=2e-7)


def test_both_devices_have_all_that_the_interface_names() -> None:
    named = {name for name in vars(Device) if not name.startswith("_")} | set(Device.__annotations__)
    for kind in (StandInDevice, CudaDevice):
        assert named - {"info", "stream"} <= set(dir(kind)), kind


def test_nothing_happens_before_something_waits() -> None:
    device = StandInDevice()
    values = np.arange(4, dtype=np.float32)
    first, second = device.allocate(16, "a"), device.allocate(16, "b")
    device.upload(first, values)
    values[:] = 0
    device.copy(second, first, 16)
    assert device.log == []
    assert get(device, second, (4,), np.float32).tolist() == [0, 1, 2, 3]
    assert device.log == ["upload", "copy"]
    assert device.waits == 1


def test_fresh_memory_is_nan_and_accesses_are_checked() -> None:
    device = StandInDevice(memory=4096)
    address = device.allocate(100, "a")
    other = device.allocate(100, "b")
    assert address % 256 == other % 256 == 0
    assert np.isnan(get(device, address, (25,), np.float32)).all()
    with pytest.raises(DeviceError, match=r"104 bytes at .* do not lie inside one allocation"):
        device.view(address, (26,), np.float32)
    with pytest.raises(DeviceError, match="do not lie inside"):
        device.normal(1, 26, address)
    device.free(other)
    with pytest.raises(DeviceError, match="do not lie inside"):
        device.copy(address, other, 4)
    with pytest.raises(DeviceError, match="nothing was allocated"):
        device.free(other)


def test_memory_is_used_again_and_runs_out() -> None:
    device = StandInDevice(memory=4096)
    blocks = [device.allocate(1024, "a") for _ in range(4)]
    with pytest.raises(DeviceMemoryError, match=r"1 MiB for one too many cannot be had .*--low-vram"):
        device.allocate(1, "one too many")
    device.free(blocks[1])
    assert device.allocate(1000, "b") == blocks[1]
    assert device.memory_used() == 3 * 1024 + 1000
    assert device.peak == 4096


def test_replay() -> None:
    device = StandInDevice()
    target = put(device, np.zeros(4, dtype=np.float32))
    values = np.ones(4, dtype=np.float32)
    calls = []
    marks = []

    def work() -> None:
        calls.append(1)
        device.upload(target, values)
        device.enqueue("network", lambda: np.add(view, 1, out=view))
        marks.append(device.mark())

    view = device.view(target, (4,), np.float32)
    assert [device.replay("key", work) for _ in range(2)] == ["eager", "recorded"]
    values[:] = 7
    assert device.replay("key", work) == "replayed"
    assert get(device, target, (4,), np.float32).tolist() == [2] * 4
    assert len(calls) == 2
    assert device.log[-4:] == ["replayed", "upload", "network", "mark"]
    assert marks[1].seconds_since(marks[0]) > 0
    device.forget()
    assert device.replay("key", work) == "eager"


def test_recordings_that_are_refused() -> None:
    device = StandInDevice()
    target = device.allocate(16, "a")

    def work() -> None:
        device.upload(target, np.ones(4, dtype=np.float32))
        device.synchronize()

    assert [device.replay("waits", work) for _ in range(3)] == ["eager"] * 3
    assert "waiting for the GPU" in device.refusals["waits"]
    device.refuse = "the test says so"
    assert [device.replay("key", lambda: device.copy(target, target, 4)) for _ in range(3)] == ["eager"] * 3
    assert "the test says so" in device.refusals["key"]
    device.synchronize()
    assert device.log == ["upload"] * 3 + ["copy"] * 3


def test_closed() -> None:
    device = StandInDevice()
    address = device.allocate(16, "a")
    device.close()
    device.close()
    with pytest.raises(DeviceError):
        device.upload(address, np.ones(4, dtype=np.float32))
