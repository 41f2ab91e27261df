"""The native core's kernels by name: what each is called with, whoever launches it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from runtime.cuda.device import geometry
from runtime.cuda.interface import Advance, Unpack

Launch = Callable[[str, int, int, int, int], None]
"""Puts a kernel on the stream: name, blocks, threads a block, bytes of shared memory, address of the arguments.

The arguments are an array of addresses, one for each, and are read before the call returns.
"""

NAMES = (
    *(
        f"arcflow_advance_{suffix}{rest}"
        for suffix, _ in geometry.TYPES.values()
        for rest in geometry.SUFFIXES.values()
    ),
    "arcflow_normal",
    "arcflow_unpack",
    "arcflow_to_rgb8",
    "arcflow_find_nonfinite",
)
"""Entry points of arcflow_kernels.cu."""

_FactorArray = ctypes.c_float * geometry.MAX_FACTORS


class Factors(ctypes.Structure):
    """``arcflow::cuda::Factors`` of elements.cuh, handed over by value."""

    _fields_ = (("count", ctypes.c_int), ("scaling", _FactorArray), ("shift", _FactorArray))


class Kernels:
    """The kernels over one way to launch them. Arguments as in :class:`runtime.cuda.interface.Device`."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    def advance(self, step: Advance) -> None:
        """One step of the solver. Raises DeviceError where the kernels do not take its sizes."""
        name, plan = geometry.advance_launch(step)
        self._put(
            name,
            plan.blocks,
            geometry.ADVANCE_THREADS,
            plan.shared_bytes,
            ctypes.c_void_p(step.means),
            ctypes.c_void_p(step.logweights),
            ctypes.c_void_p(step.loggammas or step.logweights),  # One mode has no rates.
            ctypes.c_void_p(step.x),
            ctypes.c_void_p(step.out),
            ctypes.c_longlong(step.tokens),
            ctypes.c_int(step.modes),
            ctypes.c_int(step.channels),
            ctypes.c_int(step.positions),
            ctypes.c_int(plan.tokens_per_block),
            ctypes.c_float(step.sigma_src - step.sigma_a),
            ctypes.c_float(step.sigma_a - step.sigma_b),
            ctypes.c_int(step.raw_logits),
        )

    def normal(self, seed: int, count: int, out: int) -> None:
        """The first ``count`` values of a seed's noise."""
        if count:
            self._over(
                "arcflow_normal",
                count,
                ctypes.c_ulonglong(seed),
                ctypes.c_ulonglong(0),
                ctypes.c_ulonglong(count),
                ctypes.c_void_p(out),
            )

    def unpack(self, work: Unpack) -> None:
        """Packed tokens to latents. Raises DeviceError for a shape or factors that the kernel does not take."""
        geometry.check_unpack(work)
        self._over(
            "arcflow_unpack",
            work.values // work.patch,
            ctypes.c_void_p(work.tokens),
            ctypes.c_void_p(work.latents),
            ctypes.c_ulonglong(work.batch),
            ctypes.c_uint(work.rows),
            ctypes.c_uint(work.columns),
            ctypes.c_uint(work.channels),
            ctypes.c_uint(work.patch),
            Factors(len(work.scaling), _FactorArray(*work.scaling), _FactorArray(*work.shift)),
        )

    def to_rgb8(self, images: int, pixels: int, shape: tuple[int, int, int]) -> None:
        """Images to bytes. Raises DeviceError for a shape or addresses that the kernel does not take."""
        geometry.check_pixels(shape, images, pixels)
        batch, height, width = shape
        plane = height * width
        self._over(
            "arcflow_to_rgb8",
            batch * -(-plane // 4),
            ctypes.c_void_p(images),
            ctypes.c_void_p(pixels),
            ctypes.c_ulonglong(batch),
            ctypes.c_ulonglong(plane),
        )

    def find_nonfinite(self, values: int, count: int, found: int) -> None:
        """Set the uint32 at ``found``, which is 0, to 1 where a value is not finite. Raises DeviceError."""
        geometry.check_aligned("values", values)
        if count:
            self._over(
                "arcflow_find_nonfinite",
                -(-count // 4),
                ctypes.c_void_p(values),
                ctypes.c_ulonglong(count),
                ctypes.c_void_p(found),
            )

    def _over(self, name: str, work: int, *arguments: Any) -> None:
        self._put(name, geometry.blocks_for(work), geometry.THREADS, 0, *arguments)

    def _put(self, name: str, blocks: int, threads: int, shared_bytes: int, *arguments: Any) -> None:
        addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(value) for value in arguments))
        self._launch(name, blocks, threads, shared_bytes, ctypes.addressof(addresses))
