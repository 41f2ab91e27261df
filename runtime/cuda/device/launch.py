"""The native core's kernels by name: how each is launched, and with which arguments, whoever launches it.

The Python twin of runtime/native/cuda/plan.hpp and launch.cu.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from runtime.cuda.errors import DeviceError
from runtime.cuda.interface import Advance, Unpack

ADVANCE_THREADS = 128
THREADS = 256
"""Threads of a block of every kernel but the solver."""

MAX_FACTORS = 256
"""Channels that the kernel ``arcflow_unpack`` takes factors for."""

TYPES = {"float32": ("f32", 4), "float16": ("f16", 2), "bfloat16": ("bf16", 2)}
"""Types of a field: the kernel's suffix and the bytes of a value."""

FIXED_MODES = 16
"""Modes that a variant of the solver has fixed at compile time."""


class Variant(IntEnum):
    """The solver's kernels of a type: a value a load; 16 bytes a load; the same with the modes known when compiled."""

    ANY = 0
    WIDE = 1
    FIXED = 2


SUFFIXES = {Variant.ANY: "_any", Variant.WIDE: "", Variant.FIXED: f"_modes{FIXED_MODES}"}
"""What follows ``arcflow_advance_<type>`` in a kernel's name."""

_MOST = 1 << 20
_SHARED_LIMIT = 48 * 1024  # What a block may have without asking.
_MOST_BLOCKS = 65_536
_SIDE = 1 << 15  # Keeps products of two within 32 bits.

NAMES = (
    *(f"arcflow_advance_{suffix}{rest}" for suffix, _ in TYPES.values() for rest in SUFFIXES.values()),
    "arcflow_normal",
    "arcflow_unpack",
    "arcflow_to_rgb8",
    "arcflow_find_nonfinite",
)
"""Entry points of arcflow_kernels.cu."""

_FactorArray = ctypes.c_float * MAX_FACTORS


class Factors(ctypes.Structure):
    """``arcflow::cuda::Factors`` of elements.cuh, handed over by value."""

    _fields_ = (("count", ctypes.c_int), ("scaling", _FactorArray), ("shift", _FactorArray))


@dataclass(frozen=True)
class AdvancePlan:
    """A launch of the solver."""

    variant: Variant
    tokens_per_block: int
    blocks: int
    shared_bytes: int


def plan_advance(
    tokens: int, modes: int, channels: int, positions: int, value_bytes: int, aligned: bool
) -> AdvancePlan | None:
    """The launch for ``tokens`` of the whole batch; None where the kernels do not take these sizes.

    value_bytes: 4 (float32) or 2. aligned: whether all addresses are multiples of 16.
    """
    sizes_fit = min(tokens, modes, channels, positions) >= 1 and max(modes, channels, positions) <= _MOST
    if not sizes_fit or channels % positions != 0 or modes * positions > _MOST:
        return None
    width = 16 // value_bytes
    wide = aligned and positions == 4 and channels % width == 0
    lanes = channels // width if wide else channels
    # A multiple of 8 keeps the beginning of every block's gates on 16 bytes. A place a thread, if possible.
    here = max(8, -(-(ADVANCE_THREADS // lanes) // 8) * 8)
    token_bytes = (2 * modes - 1) * positions * 4
    while here > 8 and here * token_bytes > _SHARED_LIMIT:
        here -= 8
    if here * token_bytes > _SHARED_LIMIT:
        # Very many modes or positions: fewer tokens, whose gates may begin anywhere, so a value at a time.
        wide = False
        here = _SHARED_LIMIT // token_bytes
        if here < 1:
            return None
    blocks = -(-tokens // here)
    if blocks > 0x7FFFFFFF:
        return None
    variant = Variant.ANY if not wide else Variant.FIXED if modes == FIXED_MODES else Variant.WIDE
    return AdvancePlan(variant, here, blocks, here * token_bytes)


def advance_launch(step: Advance) -> tuple[str, AdvancePlan]:
    """Name of the kernel and launch for ``step``. Raises DeviceError where the kernels do not take it."""
    if step.dtype not in TYPES:
        raise DeviceError(f"the solver takes a field of {', '.join(TYPES)}, not of {step.dtype!r}")
    suffix, value_bytes = TYPES[step.dtype]
    if step.modes > 1 and step.loggammas == 0:
        raise DeviceError(f"a step of {step.modes} modes needs the address of its loggammas")
    addresses = (step.means, step.logweights, step.loggammas, step.x, step.out)
    if 0 in (step.means, step.logweights, step.x, step.out):
        raise DeviceError("a step of the solver needs the addresses of means, logweights, x and out")
    plan = plan_advance(
        step.tokens, step.modes, step.channels, step.positions, value_bytes, all(a % 16 == 0 for a in addresses)
    )
    if plan is None:
        raise DeviceError(
            f"the solver does not take {step.tokens} tokens of {step.modes} modes, {step.channels} channels and "
            f"{step.positions} positions: channels must be a multiple of positions, and modes * positions at most "
            f"{_SHARED_LIMIT // 8}"
        )
    return f"arcflow_advance_{suffix}{SUFFIXES[plan.variant]}", plan


def blocks_for(work: int) -> int:
    """Blocks of 256 threads that fill any GPU; the kernels go through the rest with a stride."""
    return min(-(-work // THREADS), _MOST_BLOCKS)


def check_unpack(work: Unpack) -> None:
    """Raise DeviceError unless the kernel takes that shape and as many factors."""
    shape = batch, rows, columns, channels, patch = work.batch, work.rows, work.columns, work.channels, work.patch
    scaling, shift = len(work.scaling), len(work.shift)
    sides = all(1 <= side <= _SIDE for side in (rows, columns, channels)) and 1 <= patch <= 64 and batch >= 1
    if not sides or channels * patch * patch > 1 << 30:
        raise DeviceError(f"latents of batch, rows, columns, channels and patch {shape} are out of range")
    if scaling != shift or scaling not in (0, 1, channels) or scaling > MAX_FACTORS:
        raise DeviceError(
            f"{scaling} scalings and {shift} shifts: there must be none, one or {channels} (a channel each) of both, "
            f"and at most {MAX_FACTORS}"
        )


def check_pixels(shape: tuple[int, int, int], *addresses: int) -> None:
    """Raise DeviceError unless the kernel takes images [batch, height, width] at these addresses."""
    batch, height, width = shape
    if batch < 1 or not (1 <= height <= _MOST and 1 <= width <= _MOST):
        raise DeviceError(f"images of batch, height and width {shape} are out of range")
    check_aligned("images and pixels", *addresses)


def check_aligned(what: str, *addresses: int) -> None:
    """Raise DeviceError unless every address is a multiple of 16."""
    if any(address % 16 for address in addresses):
        raise DeviceError(f"{what} must lie at multiples of 16 bytes, not at {', '.join(map(hex, addresses))}")


class Kernels(ABC):
    """The kernels of :class:`runtime.cuda.interface.Device`, for a device that can launch one.

    Every method raises DeviceError for sizes or addresses that its kernel does not take.
    """

    @abstractmethod
    def launch(self, name: str, blocks: int, threads: int, shared_bytes: int, arguments: int) -> None:
        """Put a kernel on the stream. arguments: the address of an array of addresses, read before this returns."""

    def advance(self, step: Advance) -> None:
        name, plan = advance_launch(step)
        # One mode has no rates.
        addresses = (step.means, step.logweights, step.loggammas or step.logweights, step.x, step.out)
        sizes = (step.modes, step.channels, step.positions, plan.tokens_per_block)
        self._put(
            name,
            plan.blocks,
            ADVANCE_THREADS,
            plan.shared_bytes,
            *map(ctypes.c_void_p, addresses),
            ctypes.c_longlong(step.tokens),
            *map(ctypes.c_int, sizes),
            ctypes.c_float(step.sigma_src - step.sigma_a),
            ctypes.c_float(step.sigma_a - step.sigma_b),
            ctypes.c_int(step.raw_logits),
        )

    def normal(self, seed: int, count: int, out: int) -> None:
        if count:
            self._over("arcflow_normal", count, *map(ctypes.c_ulonglong, (seed, 0, count)), ctypes.c_void_p(out))

    def unpack(self, work: Unpack) -> None:
        check_unpack(work)
        self._over(
            "arcflow_unpack",
            work.values // work.patch,
            *map(ctypes.c_void_p, (work.tokens, work.latents)),
            ctypes.c_ulonglong(work.batch),
            *map(ctypes.c_uint, (work.rows, work.columns, work.channels, work.patch)),
            Factors(len(work.scaling), _FactorArray(*work.scaling), _FactorArray(*work.shift)),
        )

    def to_rgb8(self, images: int, pixels: int, shape: tuple[int, int, int]) -> None:
        check_pixels(shape, images, pixels)
        batch, height, width = shape
        plane = height * width
        addresses, sizes = map(ctypes.c_void_p, (images, pixels)), map(ctypes.c_ulonglong, (batch, plane))
        self._over("arcflow_to_rgb8", batch * -(-plane // 4), *addresses, *sizes)

    def find_nonfinite(self, values: int, count: int, found: int) -> None:
        """The uint32 at ``found`` is 0 before."""
        check_aligned("values", values)
        arguments = (ctypes.c_void_p(values), ctypes.c_ulonglong(count), ctypes.c_void_p(found))
        if count:
            self._over("arcflow_find_nonfinite", -(-count // 4), *arguments)

    def _over(self, name: str, work: int, *arguments: Any) -> None:
        self._put(name, blocks_for(work), THREADS, 0, *arguments)

    def _put(self, name: str, blocks: int, threads: int, shared_bytes: int, *arguments: Any) -> None:
        addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(value) for value in arguments))
        self.launch(name, blocks, threads, shared_bytes, ctypes.addressof(addresses))
