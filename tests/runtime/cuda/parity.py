"""What every device must compute: the kernels held to golden vectors and to runtime's own numpy.

One list of checks for the stand-in, for the driver that the tests play, and for a real GPU.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation import noise
from runtime import solver
from runtime.architectures import layout
from runtime.cuda.interface import Advance, Device, Unpack
from tests.runtime.cuda.numpy_kernels import from_bfloat16

GOLDEN = Path(__file__).parents[2] / "golden"
TOLERANCE = 2e-6
"""Of the largest value: float32 sums of up to 16 modes."""


def put(device: Device, values: NDArray[Any], offset: int = 0) -> int:
    """The address of a copy of ``values`` on the device, ``offset`` bytes behind an aligned place."""
    address = device.allocate(values.nbytes + offset, "a test") + offset
    if values.size:
        device.upload(address, values)
    return address


def get(device: Device, address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """What lies on the device."""
    values = np.empty(shape, dtype=dtype)
    device.download(address, values)
    return values


def as_stored(values: NDArray[np.float32], dtype: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """``values`` as they lie in memory, and what they then are in float32."""
    if dtype == "bfloat16":
        bits = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return bits, from_bfloat16(bits)
    stored = values.astype(dtype)
    return stored, stored.astype(np.float32)


def check_golden_steps(device: Device) -> None:
    """The solver's golden vectors."""
    for case in json.loads((GOLDEN / "solver.json").read_text(encoding="utf-8"))["cases"]:
        batch, tokens, modes, channels, positions = case["shape"].values()
        names = ("means", "logweights", "loggammas", "x_a")
        addresses = [put(device, np.array(case[name], dtype=np.float32)) for name in names]
        levels = (case["sigma_src"], case["sigma_a"], case["sigma_b"])
        x = addresses[3]
        device.advance(Advance(*addresses, x, batch * tokens, modes, channels, positions, *levels))
        moved = get(device, x, (batch, tokens, channels), np.float32)
        expected = np.array(case["x_b"])
        assert np.abs(moved - expected).max() <= TOLERANCE * np.abs(expected).max(), case["name"]


def check_steps(device: Device) -> None:
    """Every kernel of the solver, by type, width, alignment, in place or not, logits or weights."""
    random = np.random.default_rng(7)
    sizes = ((2 * 37, 16, 64, 4), (5, 5, 18, 6), (300, 1, 16, 4), (9, 13, 8, 1))
    for (tokens, modes, channels, positions), dtype, raw, offset in itertools.product(
        sizes, ("float32", "float16", "bfloat16"), (False, True), (0, 4)
    ):
        shapes = ((modes, channels), (modes, positions), (modes - 1, positions))
        drawn = [random.standard_normal((tokens, *shape), dtype=np.float32) for shape in shapes]
        if not raw:
            drawn[1] -= np.logaddexp.reduce(drawn[1], axis=1, keepdims=True)
        stored = [as_stored(values, dtype) for values in drawn]
        x = random.standard_normal((tokens, channels), dtype=np.float32)
        addresses = [put(device, bits, offset) for bits, _ in stored]
        at = put(device, x)
        out = at if raw else device.allocate(x.nbytes, "a test")
        levels = (0.9, 0.8, 0.3)
        sizes_of = (tokens, modes, channels, positions)
        device.advance(Advance(*addresses, at, out, *sizes_of, *levels, dtype=dtype, raw_logits=raw))
        means, weights, rates = (values[None] for _, values in stored)
        if raw:
            weights = weights - np.logaddexp.reduce(weights.astype(np.float64), axis=2, keepdims=True)
        expected = x + solver.displacement(solver.MomentumField(means, weights, rates), *levels)[0]
        moved = get(device, out, x.shape, np.float32)
        error = np.abs(moved - expected).max() / np.abs(expected).max()
        assert error <= TOLERANCE, (sizes_of, dtype, raw, offset, error)


def check_noise(device: Device) -> None:
    """The generator's values: equal but for the last bit of a logarithm or cosine, about once in 10^8."""
    for seed, count in ((0, 1), (5, 4099), ((1 << 64) - 1, 1000)):
        address = device.allocate(4 * count, "noise")
        device.normal(seed, count, address)
        made = get(device, address, (count,), np.float32)
        expected = noise.normal_at(seed, np.arange(count, dtype=np.uint64))
        assert np.count_nonzero(made != expected) <= 1
        np.testing.assert_allclose(made, expected, rtol=2e-7)


def check_latents(device: Device) -> None:
    """Tokens to latents with no factors, one, and one a channel."""
    random = np.random.default_rng(8)
    batch, rows, columns, channels, patch = shape = (2, 3, 5, 16, 2)
    tokens = random.standard_normal((batch, rows * columns, channels * patch**2), dtype=np.float32)
    source = put(device, tokens)
    target = device.allocate(tokens.nbytes, "latents")
    plain = layout.unpack(tokens, rows, columns, patch)
    for count in (0, 1, channels):
        scaling = random.uniform(0.3, 3, count).astype(np.float32)
        shift = random.standard_normal(count, dtype=np.float32)
        device.unpack(Unpack(source, target, *shape, scaling.tolist(), shift.tolist()))
        expected = plain
        if count:
            expected = plain / scaling.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)
        # A GPU fuses the product and the sum of a division; no more than the last bits may differ.
        np.testing.assert_allclose(get(device, target, expected.shape, np.float32), expected, rtol=1e-6, atol=1e-6)


def check_pixels(device: Device) -> None:
    """Images to bytes, with planes that four divides and others."""
    random = np.random.default_rng(9)
    for batch, height, width in ((2, 8, 6), (3, 5, 7)):
        images = random.uniform(-1.3, 1.3, (batch, 3, height, width)).astype(np.float32)
        pixels = device.allocate(images.size, "pixels")
        device.to_rgb8(put(device, images), pixels, (batch, height, width))
        made = get(device, pixels, (batch, height, width, 3), np.uint8)
        assert np.array_equal(made, layout.to_pixels(images))


def check_search(device: Device) -> None:
    """Infinity and NaN are found wherever they are, and the flag is cleared before."""
    flag = put(device, np.array([7], dtype=np.uint32))
    for count in (1, 4, 7, 1001):
        values = np.linspace(-3e38, 3e38, count, dtype=np.float32)
        for place, bad in ((None, 0.0), (0, np.inf), (count - 1, np.nan), (count // 2, -np.inf)):
            one = values.copy()
            if place is not None:
                one[place] = bad
            device.find_nonfinite(put(device, one), count, flag)
            assert get(device, flag, (1,), np.uint32)[0] == (place is not None), (count, place)


CHECKS = (check_golden_steps, check_steps, check_noise, check_latents, check_pixels, check_search)
