"""The GPUs of this machine, as :mod:`engines.machine` finds them."""

from __future__ import annotations

from engines.machine import this_machine


def local_capabilities() -> tuple[str, ...]:
    """The compute capability of each GPU, in the driver's order ("sm89"); empty without a driver or a GPU."""
    return this_machine().gpus
