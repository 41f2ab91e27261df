"""What a measurement asks of a GPU, over a driver of our own making; and the peaks, held to the chips' own numbers."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from runtime.bench.gpu import Gpu, MemoryWatch, find_gpu
from runtime.bench.peaks import _SHEETS, gpu_peak
from runtime.cuda.device.driver import Driver
from runtime.cuda.errors import DeviceError
from runtime.cuda.interface import DeviceInfo
from runtime.errors import BackendError

TOTAL = 80 << 30
H100 = "NVIDIA H100 80GB HBM3"
_ATTRIBUTES = {
    "COMPUTE_CAPABILITY_MAJOR": 9,
    "COMPUTE_CAPABILITY_MINOR": 0,
    "L2_CACHE_SIZE": 50 << 20,
    "MULTIPROCESSOR_COUNT": 132,
    "CLOCK_RATE": 1_980_000,
    "MEMORY_CLOCK_RATE": 2_619_000,
    "GLOBAL_MEMORY_BUS_WIDTH": 5120,
}


class Api:
    """The driver's functions that are asked here, for one H100 with ``used`` bytes taken."""

    CUdevice_attribute = SimpleNamespace(**{f"CU_DEVICE_ATTRIBUTE_{name}": name for name in _ATTRIBUTES})
    CUresult = int

    def __init__(self) -> None:
        self.used = 1 << 30
        self.fails = False
        self.depth = 0
        self.retained = 0

    def cuDeviceGetCount(self) -> tuple[int, int]:
        return 0, 1

    def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:
        return 0, ordinal

    def cuDeviceGetName(self, length: int, device: int) -> tuple[int, bytes]:
        return 0, H100.encode() + b"\0\0"

    def cuDriverGetVersion(self) -> tuple[int, int]:
        return 0, 13010

    def cuDeviceTotalMem(self, device: int) -> tuple[int, int]:
        return 0, TOTAL

    def cuDeviceGetAttribute(self, name: str, device: int) -> tuple[int, int]:
        return 0, _ATTRIBUTES[name]

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, str]:
        self.retained += 1
        return 0, "context"

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[int]:
        self.retained -= 1
        return (0,)

    def cuCtxPushCurrent(self, context: str) -> tuple[int]:
        self.depth += 1
        return (0,)

    def cuCtxPopCurrent(self) -> tuple[int, str]:
        self.depth -= 1
        return 0, "context"

    def cuMemGetInfo(self) -> tuple[int, int, int]:
        return (719 if self.fails else 0), TOTAL - self.used, TOTAL

    def cuGetErrorName(self, status: int) -> tuple[int, bytes]:
        return 0, b"CUDA_ERROR"

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, b"an error"


def test_a_gpu_is_described() -> None:
    gpu = find_gpu(0, Driver(Api()))
    assert (gpu.info.name, gpu.info.capability, gpu.info.driver) == (H100, "sm90", "13.1")
    assert gpu.clock == 1.98e9
    assert gpu.bandwidth == pytest.approx(3.352e12, rel=1e-3)
    with pytest.raises(DeviceError, match="there is no GPU 1; this machine has 0"):
        find_gpu(1, Driver(Api()))


def test_the_most_memory_is_seen_above_what_was_there() -> None:
    api = Api()
    with MemoryWatch(0, Driver(api)) as memory:
        api.used = 7 << 30
        deadline = time.monotonic() + 5
        while memory._most < 7 << 30 and time.monotonic() < deadline:
            time.sleep(0.001)
        api.used = 3 << 30
        memory.rest()
        assert memory.peak() == 6 << 30
        api.used = 9 << 30
        assert memory.peak() == 8 << 30
        api.used = 0
        assert memory.peak() == 8 << 30
    assert (api.depth, api.retained) == (0, 0)


def test_a_lost_gpu_is_an_error_of_the_asker_alone(capsys: pytest.CaptureFixture[str]) -> None:
    api = Api()
    with MemoryWatch(0, Driver(api)) as memory:
        api.fails = True
        memory._thread.join(timeout=5)
        assert not memory._thread.is_alive()
        with pytest.raises(DeviceError, match="asking for the GPU's free memory"):
            memory.peak()
    assert api.depth == 0
    assert capsys.readouterr().err == ""


def gpu(name: str, capability: str, multiprocessors: int, clock: float, bandwidth: float = 1e12) -> Gpu:
    return Gpu(DeviceInfo(name, capability, "13.0", TOTAL, 1 << 20, multiprocessors), clock, bandwidth)


@pytest.mark.parametrize(
    ("name", "capability", "multiprocessors", "boost"),
    [
        ("NVIDIA H100 80GB HBM3", "sm90", 132, 1.830e9),
        ("NVIDIA H100 PCIe", "sm90", 114, 1.620e9),
        ("NVIDIA A100-SXM4-80GB", "sm80", 108, 1.410e9),
        ("NVIDIA L40S", "sm89", 142, 2.520e9),
        ("NVIDIA L4", "sm89", 58, 2.040e9),
        ("NVIDIA A10", "sm86", 72, 1.695e9),
        ("NVIDIA B200", "sm100", 148, 1.850e9),
    ],
)
def test_the_sheets_and_the_chips_agree(name: str, capability: str, multiprocessors: int, boost: float) -> None:
    """Two sources: what NVIDIA's sheet says of the card, and multiprocessors times clock times rate."""
    sheet = gpu_peak(gpu(name, capability, multiprocessors, boost)).operations
    chip = gpu_peak(gpu("another", capability, multiprocessors, boost)).operations
    assert set(chip) == set(sheet)
    for kind in ("float16", "bfloat16", "float8"):
        if kind in sheet:
            assert chip[kind] == pytest.approx(sheet[kind], rel=0.03), kind


@pytest.mark.parametrize(
    ("name", "capability", "multiprocessors", "boost"),
    [
        ("NVIDIA GeForce RTX 5090", "sm120", 170, 2.407e9),
        ("NVIDIA GeForce RTX 4090", "sm89", 128, 2.520e9),
        ("NVIDIA GeForce RTX 3090", "sm86", 82, 1.695e9),
    ],
)
def test_geforce_has_half_of_its_chip(name: str, capability: str, multiprocessors: int, boost: float) -> None:
    sheet = gpu_peak(gpu(name, capability, multiprocessors, boost)).operations
    chip = gpu_peak(gpu("another", capability, multiprocessors, boost)).operations
    for kind in ("float16", "bfloat16", "float8"):
        if kind in sheet:
            assert chip[kind] == pytest.approx(2 * sheet[kind], rel=0.01), kind


def test_what_is_in_every_sheet_rises_with_fewer_bits() -> None:
    for name, (speeds, bandwidth, source) in _SHEETS.items():
        assert list(speeds) == sorted(speeds), name
        assert speeds[2] == speeds[3], name
        assert 100 < bandwidth < 10000, name
        assert source, name


def test_float32_is_computed_in_one_of_two_ways() -> None:
    h100 = gpu(H100, "sm90", 132, 1.98e9)
    fast, exact = gpu_peak(h100, "tf32"), gpu_peak(h100, "float32")
    assert fast.operations["float32"] == pytest.approx(494.7e12)
    assert exact.operations["float32"] == pytest.approx(66.9e12)
    assert "tf32" not in fast.operations
    assert fast.bandwidth == 3.352e12
    assert "H100 data sheet, SXM; TFLOP/s: float32 495, float16 989" in fast.source
    assert "(as TF32)" in fast.source
    assert "TF32" not in exact.source


def test_a_part_of_a_gpu_counts_its_own_multiprocessors() -> None:
    part = gpu(f"{H100} MIG 3g.40gb", "sm90", 60, 1.98e9, 1.5e12)
    peak = gpu_peak(part)
    assert peak.operations["bfloat16"] == 60 * 1.98e9 * 4096
    assert peak.bandwidth == 1.5e12
    assert "60 multiprocessors of sm90 at 1980 MHz" in peak.source


def test_a_gpu_that_is_not_known() -> None:
    with pytest.raises(BackendError, match=r"the peak of a card \(sm75\) is not known; known are sm80, .*sm120: leave"):
        gpu_peak(gpu("a card", "sm75", 40, 1.5e9))


def test_no_eight_bit_floats_where_there_are_none() -> None:
    assert "float8" not in gpu_peak(gpu("NVIDIA A100-SXM4-80GB", "sm80", 108, 1.41e9)).operations


def test_sheets_of_the_same_chip() -> None:
    h100, h200 = (gpu_peak(gpu(name, "sm90", 132, 1.98e9)) for name in (H100, "NVIDIA H200"))
    assert h100.operations == h200.operations
    assert h200.bandwidth > h100.bandwidth
