"""The kernels by runtime's own numpy: the reference, and the stand-in's kernels where there is no C++ compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation import noise
from runtime import solver
from runtime.architectures import layout
from runtime.cuda.device import launch
from runtime.cuda.interface import Advance, Unpack

_WIDE = np.uint32(16)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Float32 of the bits of bfloat16."""
    return (bits.astype(np.uint32) << _WIDE).view(np.float32)


class NumpyKernels:
    """The methods of `runtime.cuda.device.launch.Kernels` over arrays that ``array(address, shape, dtype)`` gives."""

    def __init__(self, array: Callable[[int, tuple[int, ...], Any], NDArray[Any]]) -> None:
        self._array = array

    def advance(self, step: Advance) -> None:
        """One step of the solver in float64 and float32, as the CPU's pipeline does it."""
        launch.advance_launch(step)  # The same rejections.
        means = self._field(step.means, (1, step.tokens, step.modes, step.channels), step.dtype)
        weights = self._field(step.logweights, (1, step.tokens, step.modes, step.positions), step.dtype)
        rates = np.zeros((1, step.tokens, 0, step.positions), dtype=np.float32)
        if step.modes > 1:
            rates = self._field(step.loggammas, (1, step.tokens, step.modes - 1, step.positions), step.dtype)
        if step.raw_logits:
            weights = weights - np.logaddexp.reduce(weights.astype(np.float64), axis=2, keepdims=True)
        x = self._array(step.x, (1, step.tokens, step.channels), np.float32)
        field = solver.MomentumField(means, weights, rates)
        moved = x + solver.displacement(field, step.sigma_src, step.sigma_a, step.sigma_b)
        self._array(step.out, (1, step.tokens, step.channels), np.float32)[:] = moved

    def normal(self, seed: int, count: int, out: int) -> None:
        """Noise."""
        self._array(out, (count,), np.float32)[:] = noise.normal_at(seed, np.arange(count, dtype=np.uint64))

    def unpack(self, work: Unpack) -> None:
        """Tokens to latents."""
        launch.check_unpack(work)
        width = work.channels * work.patch**2
        packed = self._array(work.tokens, (work.batch, work.rows * work.columns, width), np.float32)
        made = layout.unpack(packed, work.rows, work.columns, work.patch)
        if work.scaling:
            factors = (np.asarray(values, np.float32).reshape(1, -1, 1, 1) for values in (work.scaling, work.shift))
            made = made / next(factors) + next(factors)
        self._array(work.latents, made.shape, np.float32)[:] = made

    def to_rgb8(self, images: int, pixels: int, shape: tuple[int, int, int]) -> None:
        """Images to bytes."""
        launch.check_pixels(shape, images, pixels)
        batch, height, width = shape
        made = layout.to_pixels(self._array(images, (batch, 3, height, width), np.float32))
        self._array(pixels, (batch, height, width, 3), np.uint8)[:] = made

    def find_nonfinite(self, values: int, count: int, found: int) -> None:
        """Whether a value is infinite or NaN; the flag is 0 before."""
        launch.check_aligned("values", values)
        if not np.isfinite(self._array(values, (count,), np.float32)).all():
            self._array(found, (1,), np.uint32)[:] = 1

    def _field(self, address: int, shape: tuple[int, ...], dtype: str) -> NDArray[np.float32]:
        if dtype == "bfloat16":
            return from_bfloat16(self._array(address, shape, np.uint16))
        return self._array(address, shape, np.dtype(dtype)).astype(np.float32)
