"""Errors of the GPU: each says what was wrong, what is allowed and what to do."""

from __future__ import annotations

from runtime.errors import BackendError


class DeviceError(BackendError):
    """There is no usable GPU, or work on it failed."""


class DeviceMemoryError(DeviceError):
    """The GPU's memory, or the pinned memory beside it, is exhausted."""


class CaptureRefusedError(DeviceError):
    """Something that cannot become a part of a CUDA graph; the work is done without one."""


EXHAUSTED = "the GPU's memory is exhausted"
LESS = "ask for fewer or smaller images at once, use --low-vram, or close what else uses this GPU"


def memory_error(what: str, size: int, free: int | None = None, total: int | None = None) -> DeviceMemoryError:
    """What to say of memory. what: what it was for; sizes in bytes, free and total where they are known."""
    room = "" if free is None or total is None else f" ({mebibytes(free)} of {mebibytes(total)} are free)"
    return DeviceMemoryError(f"{EXHAUSTED}: {mebibytes(size)} for {what} cannot be had{room}; {LESS}")


def mebibytes(size: int) -> str:
    """A size in bytes for a person, rounded up: "12 MiB"."""
    return f"{-(-size // (1 << 20))} MiB"
