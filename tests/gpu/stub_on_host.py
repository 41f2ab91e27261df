"""The stub network of the part ``graphs`` in numpy, for the stand-in device."""

from __future__ import annotations

import math
import time

import numpy as np

from gpu.kernels.fields import POSITIONS, Placed
from gpu.kernels.stub import Stub
from tests.runtime.cuda.stand_in import StandInDevice


def host_stub(device: StandInDevice) -> Stub:
    """Puts what gpu/kernels/stub.py's kernel does on the stand-in's stream; it does not wait."""

    def put(field: Placed, times: int, slot: int, nanoseconds: int) -> None:
        def work() -> None:
            clock = device.view(times, (4,), np.uint64)
            clock[2 * slot] = min(int(clock[2 * slot]), time.perf_counter_ns())
            n, k, c, p = field.size.all_tokens, field.size.modes, field.size.channels, POSITIONS
            growth = (1 + np.arange(k, dtype=np.float32) / np.float32(k))[None, :, None]
            device.view(field.means, (n, k, c), np.float32)[:] = (
                device.view(field.x, (n, c), np.float32)[:, None] * growth
            )
            device.view(field.logweights, (n, k, p), np.float32)[:] = -math.log(k)
            rates = (np.arange(1, k, dtype=np.float32) / k)[None, :, None]
            device.view(field.loggammas, (n, k - 1, p), np.float32)[:] = rates
            clock[2 * slot + 1] = time.perf_counter_ns()

        device.enqueue("stub", work)

    return put
