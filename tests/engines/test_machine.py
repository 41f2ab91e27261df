"""What is asked of the machine, and that no answer is an answer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

import pytest

from engines import machine


def _driver(*gpus: tuple[int, int], broken: str = "") -> Any:
    """The six functions of the CUDA driver that are called, over a list of (major, minor)."""

    def found(place: Any, value: int) -> int:
        place._obj.value = value
        return 0

    def name(place: Any, size: int, device: Any) -> int:
        place.value = f"GPU {device.value}".encode()[: size - 1]
        return 0

    functions: dict[str, Callable[..., int]] = {
        "cuInit": lambda flags: 0,
        "cuDeviceGetCount": lambda count: found(count, len(gpus)),
        "cuDeviceGet": lambda device, ordinal: found(device, ordinal),
        "cuDeviceGetAttribute": lambda value, key, device: found(value, gpus[device.value][{75: 0, 76: 1}[key]]),
        "cuDeviceGetName": name,
    }
    return SimpleNamespace(**{**functions, **({broken: lambda *_: 100} if broken else {})})


def test_gpus_in_the_order_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _driver((9, 0), (12, 0), (8, 9)))
    assert machine._gpus() == (("sm90", "GPU 0"), ("sm120", "GPU 1"), ("sm89", "GPU 2"))
    here = machine.this_machine.__wrapped__()
    assert (here.gpus, here.names) == (("sm90", "sm120", "sm89"), ("GPU 0", "GPU 1", "GPU 2"))


@pytest.mark.parametrize(
    "broken", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetAttribute", "cuDeviceGetName"]
)
def test_a_driver_that_fails_is_no_gpu(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _driver((9, 0), broken=broken))
    assert machine._gpus() == ()


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_DRIVERS", ("libno-such-driver.so.1",))
    assert machine._gpus() == ()


def test_flavours_are_those_that_python_knows() -> None:
    for flavour, found in machine.this_machine().flavours.items():
        versions = []
        for distribution in machine.DISTRIBUTIONS[flavour]:
            try:
                versions.append(version(distribution))
            except PackageNotFoundError:
                continue
        assert found == versions[0]
