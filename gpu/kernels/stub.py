"""A stand-in for the backbone: a kernel that writes a known field, keeps the GPU for a while, and notes when it ran.

So the time between the end of one evaluation and the beginning of the next can be read off the device's own clock,
inside of a CUDA graph too, with no network at all.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpu.kernels.fields import POSITIONS

if TYPE_CHECKING:
    from gpu.kernels.fields import Placed
    from runtime.cuda.device.gpu import CudaDevice

SOURCE = r"""
// The GPU's clock in nanoseconds.
static __device__ __forceinline__ unsigned long long now() {
  unsigned long long value;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(value));
  return value;
}

// means_k = x (1 + k / modes), equal gates, loggamma_k = k / modes; then waits until `nanoseconds` have gone by.
// times: [2 * slot] least beginning, [2 * slot + 1] greatest end of all blocks.
extern "C" __global__ void __launch_bounds__(256)
    arcflow_stub(const float* x, float* means, float* logweights, float* loggammas, long long tokens, int modes,
                 int channels, int positions, unsigned long long* times, int slot, unsigned nanoseconds) {
  const unsigned long long begin = now();
  if (threadIdx.x == 0) atomicMin(times + 2 * slot, begin);
  const long long first = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = first; i < tokens * modes * channels; i += stride) {
    const long long token = i / (static_cast<long long>(modes) * channels);
    const int mode = static_cast<int>(i / channels % modes);
    means[i] = x[token * channels + i % channels] * (1.0f + static_cast<float>(mode) / modes);
  }
  for (long long i = first; i < tokens * modes * positions; i += stride) logweights[i] = -logf(modes);
  for (long long i = first; i < tokens * (modes - 1) * positions; i += stride) {
    loggammas[i] = static_cast<float>(i / positions % (modes - 1) + 1) / modes;
  }
  unsigned long long end = now();
  while (end - begin < nanoseconds) end = now();
  __syncthreads();
  if (threadIdx.x == 0) atomicMax(times + 2 * slot + 1, now());
}
"""
NAME = "arcflow_stub"
THREADS = 256


Stub = Callable[["Placed", int, int, int], None]
"""Puts an evaluation on the stream: field (float32, as ports are), address of the times (uint64), slot in them,
nanoseconds to keep the GPU."""


def factor(modes: int, sigma_src: float, sigma_a: float, sigma_b: float) -> float:
    """What the state is multiplied by in a step whose field the stub made, in float64."""
    start, span, total = sigma_src - sigma_a, sigma_a - sigma_b, 0.0
    for mode in range(modes):
        rate = mode / modes
        moved = span if mode == 0 else math.exp(rate * start) * math.expm1(rate * span) / rate
        total += (1.0 + mode / modes) / modes * moved
    return 1.0 - total


def stub_image(capability: str) -> bytes:
    """The stub for a capability such as "sm90", kept where the runtime keeps its kernels. Raises DeviceError."""
    from runtime.cuda.device.kernels import cached_image

    return cached_image("stub.cu", SOURCE.encode(), {}, int(capability.removeprefix("sm")))


def load_stub(device: CudaDevice) -> Stub:
    """The stub on an opened device, whose context is this thread's. Raises DeviceError."""
    from runtime.cuda.device.driver import load_driver

    driver, what = load_driver(), "loading the stub"
    module = driver(what, "cuModuleLoadData", stub_image(device.info.capability))
    function = driver(what, "cuModuleGetFunction", module, NAME.encode())
    # As many blocks as are at work together, so that none waits for another to end.
    blocks = device.info.multiprocessors * 4

    def put(field: Placed, times: int, slot: int, nanoseconds: int) -> None:
        size = field.size
        values = (
            *(ctypes.c_void_p(address) for address in (field.x, field.means, field.logweights, field.loggammas)),
            ctypes.c_longlong(size.all_tokens),
            *(ctypes.c_int(value) for value in (size.modes, size.channels, POSITIONS)),
            ctypes.c_void_p(times),
            ctypes.c_int(slot),
            ctypes.c_uint(nanoseconds),
        )
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        grid = (blocks, 1, 1, THREADS, 1, 1, 0, device.stream)
        driver("launching the stub", "cuLaunchKernel", function, *grid, ctypes.addressof(addresses), 0)

    return put
