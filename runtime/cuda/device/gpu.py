"""One GPU with one stream: :class:`runtime.cuda.interface.Device` over NVIDIA's driver."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from runtime.cuda.device.driver import Driver, describe_device, find_device, load_driver
from runtime.cuda.device.graphs import DeviceEvent, Recordings
from runtime.cuda.device.kernels import kernel_image
from runtime.cuda.device.launch import NAMES, Kernels
from runtime.cuda.device.staging import Staging
from runtime.cuda.errors import DeviceError, DeviceMemoryError, memory_error
from runtime.cuda.interface import DeviceInfo

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: work on the process's default stream is none of ours.
_PTX_END = b"\0"  # cuModuleLoadData reads PTX as far as a zero; a cubin says how long it is.


def open_device(ordinal: int = 0) -> CudaDevice:
    """GPU ``ordinal``, as CUDA counts them, with a stream of its own and the kernels loaded.

    It works in the GPU's primary context, which torch and ONNX Runtime use as well. Raises DeviceError where there is
    no driver, an old one or no such GPU; DeviceMemoryError.
    """
    return CudaDevice(load_driver(), ordinal)


class CudaDevice(Kernels):
    """:class:`runtime.cuda.interface.Device` on a GPU, made by :func:`open_device`; every method raises DeviceError.

    Used by one thread at a time, whose current context becomes this GPU's. A mark inside :meth:`replay`'s work is
    passed anew by each replay: keep the marks of the run that was recorded and read them after every one. refusals:
    why a key is not recorded, by key.
    """

    info: DeviceInfo
    stream: int

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self._driver = driver
        self._open = False
        self._sizes: dict[int, int] = {}
        self._functions: dict[str, Any] = {}
        self._module: Any = None
        self.info = describe_device(driver, ordinal)
        self._device = find_device(driver, ordinal)
        self._context = driver(f"taking GPU {ordinal}", "cuDevicePrimaryCtxRetain", self._device)
        try:
            driver(f"choosing GPU {ordinal}", "cuCtxSetCurrent", self._context)
            self._stream = driver("making a stream", "cuStreamCreate", _NON_BLOCKING)
            self.stream = int(self._stream)
        except BaseException:
            driver.quietly("cuDevicePrimaryCtxRelease", self._device)
            raise
        self._open = True
        self._recordings = Recordings(driver, self._stream)
        self._staging = Staging(driver, self._stream)
        self.refusals = self._recordings.refusals
        try:
            self._load_kernels()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> CudaDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def allocate(self, size: int, what: str) -> int:
        self._enter("allocating memory")
        try:
            address = int(self._driver(f"allocating {what}", "cuMemAlloc", max(size, 1)))
        except DeviceMemoryError as error:
            raise memory_error(what, size, *self._driver("asking for free memory", "cuMemGetInfo")) from error
        self._sizes[address] = size
        return address

    def free(self, address: int) -> None:
        """Waits for the stream; DeviceError also for what was not allocated here."""
        self._enter("freeing memory")
        if address not in self._sizes:
            raise DeviceError(f"nothing was allocated at {address:#x}, or it was freed before")
        self._driver("waiting for the GPU", "cuStreamSynchronize", self._stream)
        self._driver("freeing memory", "cuMemFree", address)
        del self._sizes[address]

    def memory_used(self) -> int:
        return sum(self._sizes.values())

    def upload(self, address: int, values: NDArray[Any]) -> None:
        self._enter()
        if self._recordings.recording:
            self._recordings.upload(address, values)
            return
        self._recordings.uploads(values.nbytes)
        self._staging.write(address, values)

    def download(self, address: int, values: NDArray[Any]) -> None:
        self._enter("reading from the GPU")
        self._staging.read(address, values)

    def copy(self, target: int, source: int, size: int) -> None:
        self._enter()
        if size and target != source:
            self._driver("copying on the GPU", "cuMemcpyDtoDAsync", target, source, size, self._stream)

    def find_nonfinite(self, values: int, count: int, found: int) -> None:
        self._enter()
        self._driver("clearing memory", "cuMemsetD32Async", found, 0, 1, self._stream)
        super().find_nonfinite(values, count, found)

    def launch(self, name: str, blocks: int, threads: int, shared_bytes: int, arguments: int) -> None:
        self._enter()
        grid, block = (blocks, 1, 1), (threads, 1, 1)
        call = (self._functions[name], *grid, *block, shared_bytes, self._stream, arguments, 0)
        self._driver(f"launching {name}", "cuLaunchKernel", *call)

    def replay(self, key: Hashable, work: Callable[[], None]) -> str:
        self._enter()
        return self._recordings.replay(key, work)

    def forget(self) -> None:
        """Waits for the stream."""
        self._enter()
        self._recordings.forget()

    def mark(self) -> DeviceEvent:
        self._enter()
        return self._recordings.mark()

    def synchronize(self) -> None:
        self._enter("waiting for the GPU")
        self._driver("waiting for the GPU", "cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free everything; may be called twice. Whatever the GPU says to it is passed over."""
        if not self._open:
            return
        self._open = False
        tell = self._driver.quietly
        tell("cuCtxSetCurrent", self._context)
        tell("cuStreamSynchronize", self._stream)
        self._recordings.close()
        self._staging.close()
        for address in self._sizes:
            tell("cuMemFree", address)
        self._sizes.clear()
        self._functions.clear()
        if self._module is not None:
            tell("cuModuleUnload", self._module)
        tell("cuStreamDestroy", self._stream)
        tell("cuCtxSetCurrent", None)  # It may be gone with our share of it; whoever else has one finds it again.
        tell("cuDevicePrimaryCtxRelease", self._device)

    def _load_kernels(self) -> None:
        image = kernel_image(int(self.info.capability.removeprefix("sm"))) + _PTX_END
        self._module = self._driver("loading the kernels", "cuModuleLoadData", image)
        for name in NAMES:
            what = f"loading the kernel {name}"
            self._functions[name] = self._driver(what, "cuModuleGetFunction", self._module, name.encode())

    def _enter(self, refused: str = "") -> None:
        """Make this GPU the thread's. refused: what is done, where it cannot be a part of a graph."""
        if not self._open:
            raise DeviceError("the device is closed")
        if refused:
            self._recordings.refuse(refused)
        self._driver("choosing the GPU", "cuCtxSetCurrent", self._context)
