"""Launches of the kernels: equal to the native core's, and what the kernels do not take is rejected."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.cuda.device import launch
from runtime.cuda.device.kernels import NATIVE, sources
from runtime.cuda.device.launch import AdvancePlan, Variant, plan_advance
from runtime.cuda.errors import DeviceError
from runtime.cuda.interface import Advance, Unpack
from tests.runtime.cuda import host_library

ANY, WIDE, FIXED = Variant
STEP = Advance(0x100, 0x200, 0x300, 0x400, 0x400, 4096, 16, 64, 4, 1.0, 1.0, 0.75)

GOLDEN = [
    # tokens, modes, channels, positions, bytes, aligned: what plan.hpp makes of FLUX and Qwen-Image at 1024 and 2048.
    ((4096, 16, 64, 4, 4, True), AdvancePlan(FIXED, 8, 512, 3968)),
    ((4096, 16, 64, 4, 2, True), AdvancePlan(FIXED, 16, 256, 7936)),
    ((16384, 16, 64, 4, 4, True), AdvancePlan(FIXED, 8, 2048, 3968)),
    ((8 * 16384, 16, 64, 4, 2, True), AdvancePlan(FIXED, 16, 8192, 7936)),
    ((4096, 16, 64, 4, 2, False), AdvancePlan(ANY, 8, 512, 3968)),
    ((4096, 15, 64, 4, 4, True), AdvancePlan(WIDE, 8, 512, 3712)),
    ((1, 1, 4, 4, 4, True), AdvancePlan(WIDE, 128, 1, 2048)),
    ((9, 3000, 4, 1, 4, True), AdvancePlan(ANY, 2, 5, 47992)),
]


@pytest.mark.parametrize(("sizes", "plan"), GOLDEN)
def test_known_launches(sizes: tuple[int, int, int, int, int, bool], plan: AdvancePlan) -> None:
    assert plan_advance(*sizes) == plan


@functools.cache
def _native() -> ctypes.CDLL:
    return ctypes.CDLL(str(host_library.build("libplan_probe.so", "plan_probe.cpp")))


@pytest.mark.skipif(host_library.compiler() is None, reason="no C++ compiler")
@settings(max_examples=400, deadline=None)
@given(
    tokens=st.integers(0, 1 << 40),
    modes=st.one_of(st.integers(0, 40), st.integers(0, (1 << 20) + 1)),
    groups=st.integers(0, 64),
    positions=st.one_of(st.sampled_from([1, 4, 6]), st.integers(0, 5000)),
    odd=st.integers(0, 1),
    value_bytes=st.sampled_from([2, 4]),
    aligned=st.booleans(),
)
@example(tokens=1, modes=1 << 20, groups=1, positions=1, odd=0, value_bytes=4, aligned=True)
@example(tokens=1 << 40, modes=1, groups=1, positions=1, odd=0, value_bytes=4, aligned=True)
@example(tokens=100, modes=6144, groups=1, positions=1, odd=0, value_bytes=2, aligned=True)
@example(tokens=100, modes=6145, groups=1, positions=1, odd=0, value_bytes=2, aligned=True)
def test_the_native_core_launches_the_same(
    tokens: int, modes: int, groups: int, positions: int, odd: int, value_bytes: int, aligned: bool
) -> None:
    sizes = (tokens, modes, groups * positions + odd, positions, value_bytes, aligned)
    made = (ctypes.c_int64 * 4)()
    found = _native().arcflow_plan((ctypes.c_int64 * 6)(*map(int, sizes)), made)
    expected = AdvancePlan(Variant(made[0]), *made[1:]) if found else None
    assert plan_advance(*sizes) == expected


@pytest.mark.parametrize("dtype", list(launch.TYPES))
@pytest.mark.parametrize("field", ["means", "logweights", "loggammas", "x", "out"])
def test_an_odd_address_takes_the_narrow_kernel(dtype: str, field: str) -> None:
    suffix, _ = launch.TYPES[dtype]
    step = dataclasses.replace(STEP, dtype=dtype)
    assert launch.advance_launch(step)[0] == f"arcflow_advance_{suffix}_modes16"
    step = dataclasses.replace(step, **{field: 0x404})
    assert launch.advance_launch(step)[0] == f"arcflow_advance_{suffix}_any"


@pytest.mark.parametrize("modes", [1, 2, 8, 15, 17, 32])
def test_another_number_of_modes_takes_the_kernel_for_any(modes: int) -> None:
    assert launch.advance_launch(dataclasses.replace(STEP, modes=modes))[0] == "arcflow_advance_f32"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float64"}, "takes a field of float32, float16, bfloat16, not of 'float64'"),
        ({"channels": 63}, "channels must be a multiple of positions"),
        ({"tokens": 0}, "does not take 0 tokens"),
        ({"modes": 7000}, "modes \\* positions at most 6144"),
        ({"loggammas": 0}, "needs the address of its loggammas"),
        ({"x": 0}, "needs the addresses"),
    ],
)
def test_a_step_that_the_solver_does_not_take(changes: dict[str, object], words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        launch.advance_launch(dataclasses.replace(STEP, **changes))


def test_one_mode_has_no_rates() -> None:
    assert launch.advance_launch(dataclasses.replace(STEP, modes=1, loggammas=0))[0] == "arcflow_advance_f32"


@pytest.mark.parametrize(
    ("shape", "factors"),
    [((0, 1, 1, 1, 1), 0), ((1, 1, 40_000, 1, 1), 0), ((1, 1, 1, 1, 65), 0), ((1, 2, 2, 16, 2), 2)],
)
def test_latents_that_the_kernel_does_not_take(shape: tuple[int, int, int, int, int], factors: int) -> None:
    with pytest.raises(DeviceError):
        launch.check_unpack(Unpack(0x100, 0x200, *shape, [1.0] * factors, [1.0] * factors))


def test_factors_are_both_or_none() -> None:
    both = Unpack(0x100, 0x200, 1, 2, 2, 16, 2, [1.0] * 16, [1.0] * 16)
    launch.check_unpack(both)
    with pytest.raises(DeviceError, match="16 scalings and 0 shifts"):
        launch.check_unpack(dataclasses.replace(both, shift=()))
    with pytest.raises(DeviceError, match="at most 256"):
        launch.check_unpack(Unpack(0x100, 0x200, 1, 2, 2, 300, 1, [1.0] * 300, [1.0] * 300))


def test_images_that_the_kernel_does_not_take() -> None:
    launch.check_pixels((1, 8, 8), 0x100, 0x200)
    with pytest.raises(DeviceError, match="multiples of 16"):
        launch.check_pixels((1, 8, 8), 0x104, 0x200)
    with pytest.raises(DeviceError, match="out of range"):
        launch.check_pixels((1, 8, 0), 0x100, 0x200)


def test_a_grid_fills_any_gpu_and_no_more() -> None:
    assert [launch.blocks_for(work) for work in (1, 256, 257, 1 << 40)] == [1, 1, 2, 65_536]


def test_names_and_factors_are_those_of_the_source() -> None:
    source, headers = sources()
    text = source.decode()
    found = set(re.findall(r"ARCFLOW_ADVANCE\((arcflow_\w+),", text)) | set(re.findall(r"\n {4}(arcflow_\w+)\(", text))
    assert found == set(launch.NAMES)
    assert f"_modes{launch.FIXED_MODES}, float, 4, 4, {launch.FIXED_MODES})" in text
    assert f"kFixedModes = {launch.FIXED_MODES};" in (NATIVE / "cuda" / "plan.hpp").read_text(encoding="utf-8")
    assert f"kMaxFactors = {launch.MAX_FACTORS};" in headers["cuda/elements.cuh"].decode()
    assert ctypes.sizeof(launch.Factors) == 4 + 2 * 4 * launch.MAX_FACTORS
