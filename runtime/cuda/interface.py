"""What the pipeline on a GPU is made of: a device with one stream, and engines that put evaluations on it.

Everything is put on the stream in order and nothing waits for the GPU but :meth:`Device.download`,
:meth:`Device.synchronize` and what says so. Addresses are plain integers; who allocates, frees.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True)
class DeviceInfo:
    """The GPU: capability "sm90", driver: the newest CUDA it knows ("13.0"), memory in bytes, multiprocessors."""

    name: str
    capability: str
    driver: str
    memory: int
    l2_bytes: int
    multiprocessors: int


@dataclass(frozen=True)
class Bound:
    """Where a port of a network lies for one evaluation: its address and its shape."""

    address: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Advance:
    """A step of the solver, as ``arcflow_advance_*`` of runtime/native/cuda/arcflow_kernels.cu takes it.

    means [tokens, modes, channels], logweights [tokens, modes, positions], loggammas [tokens, modes - 1, positions]
    of ``dtype`` ("float32", "float16" or "bfloat16"); x and out float32 [tokens, channels], out may be x; tokens are
    those of the whole batch. raw_logits: the logweights are logits yet.
    """

    means: int
    logweights: int
    loggammas: int
    x: int
    out: int
    tokens: int
    modes: int
    channels: int
    positions: int
    sigma_src: float
    sigma_a: float
    sigma_b: float
    dtype: str = "float32"
    raw_logits: bool = False


@dataclass(frozen=True)
class Unpack:
    """Packed tokens to latents, ``value / scaling + shift``, as ``arcflow_unpack`` of the same source takes them.

    tokens float32 [batch, rows * columns, channels * patch**2], latents float32 [batch, channels, rows * patch,
    columns * patch]. scaling, shift: none, one or a value a channel, at most 256.
    """

    tokens: int
    latents: int
    batch: int
    rows: int
    columns: int
    channels: int
    patch: int
    scaling: Sequence[float] = ()
    shift: Sequence[float] = ()

    @property
    def values(self) -> int:
        """Values of the tokens, and of the latents."""
        return self.batch * self.rows * self.columns * self.channels * self.patch**2


class Event(Protocol):
    """A point on the stream."""

    def seconds_since(self, earlier: Event) -> float:
        """Time on the device between two points that it has passed."""


class Device(Protocol):
    """One GPU and one stream of it; used by one thread at a time."""

    info: DeviceInfo
    stream: int
    """The stream's handle, for TensorRT."""

    def allocate(self, size: int, what: str) -> int:
        """Memory of that many bytes, aligned to 256. Raises DeviceMemoryError that says ``what`` it was for."""

    def free(self, address: int) -> None:
        """Give memory back when the stream has passed what uses it."""

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Copy an array to the device; ``values`` may change as soon as this returns. Inside :meth:`replay`'s work the
        values of the recorded run are copied again each time."""

    def download(self, address: int, values: NDArray[Any]) -> None:
        """Copy from the device into a C-contiguous array; waits for the stream."""

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy bytes on the device."""

    def advance(self, step: Advance) -> None:
        """One step of the solver."""

    def normal(self, seed: int, count: int, out: int) -> None:
        """The first ``count`` values of that seed's noise, float32 (equal to foundation.noise)."""

    def unpack(self, work: Unpack) -> None:
        """Packed tokens to latents."""

    def to_rgb8(self, images: int, pixels: int, shape: tuple[int, int, int]) -> None:
        """Float32 images [batch, 3, height, width] in about [-1, 1] to bytes; shape: batch, height, width."""

    def find_nonfinite(self, values: int, count: int, found: int) -> None:
        """Set the uint32 at ``found`` to 1 if one of ``count`` float32 values is infinite or NaN, else to 0."""

    def replay(self, key: Hashable, work: Callable[[], None]) -> str:
        """Do ``work``; from the second call with the same key on as one CUDA graph.

        work: only puts things on the stream, at addresses that stay the same for that key. The first call runs it, the
        second records it. Returns what was done: "eager", "recorded" or "replayed"; where recording was rejected it
        is "eager" from then on, and :attr:`refusals` says why. Nothing is lost by a rejection.
        """

    def forget(self) -> None:
        """Drop every recording, because memory that they use goes."""

    def mark(self) -> Event:
        """The present end of the stream."""

    def synchronize(self) -> None:
        """Wait for the stream."""

    def memory_used(self) -> int:
        """Bytes that are allocated now by this object."""

    def close(self) -> None:
        """Free everything."""


class Engine(Protocol):
    """One loaded plan. Its weights are on the device once, however many contexts there are."""

    name: str
    weight_bytes: int
    activation_bytes: int
    """Scratch memory that an evaluation needs, at the greatest shapes of the profile."""

    def bind(self, inputs: Mapping[str, Bound], outputs: Mapping[str, Bound], scratch: int) -> Evaluation:
        """An evaluation at these addresses and shapes, with ``activation_bytes`` of scratch memory at ``scratch``.

        Cached for equal arguments. Raises BackendError where shapes do not fit the profile.
        """

    def close(self) -> None:
        """Unload; evaluations of it must not be used any more."""


class Evaluation(Protocol):
    """A network at fixed shapes and addresses."""

    def enqueue(self) -> None:
        """Put it on the device's stream."""
