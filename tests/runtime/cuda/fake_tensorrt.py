"""A stand-in for TensorRT's Python module: plans are ONNX files, run by ONNX Runtime when the stream comes to them.

Its names are those of the real module (a test holds them to it); its answers are what the documentation says of them.
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import onnxruntime

from engines.tensorrt import Toolkit, make_logger
from tests.runtime.cuda.stand_in import StandInDevice

MAGIC = b"PLAN"
SCRATCH = 1000
TYPES = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64"}


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    BF16 = 2
    INT32 = 3
    INT64 = 4


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1


class EngineStat(enum.Enum):
    TOTAL_WEIGHTS_SIZE = 0


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class IRuntimeCache:
    """Kernels: how many contexts were made, as text."""

    def __init__(self) -> None:
        self.kernels = 0

    def serialize(self) -> bytes:
        return b"kernels %d" % self.kernels

    def deserialize(self, blob: bytes) -> bool:
        self.kernels = int(blob.split()[1])
        return True


class IRuntimeConfig:
    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self._cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: Any) -> ICudaEngine | None:
        data = bytes(plan)
        if not data.startswith(MAGIC):
            what = data.decode(errors="replace")[:60] if b"memory" in data else "magic tag does not match"
            message = f"IRuntime::deserializeCudaEngine: Error Code 1: {what}"
            self._logger.log(ILogger.Severity.ERROR, message)
            return None
        FakeTensorRT.loads += 1
        return ICudaEngine(data.removeprefix(MAGIC), self._logger)


class ICudaEngine:
    def __init__(self, model: bytes, logger: Any) -> None:
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._logger = logger
        self._ports = {port.name: (port, TensorIOMode.INPUT) for port in self._session.get_inputs()}
        self._ports |= {port.name: (port, TensorIOMode.OUTPUT) for port in self._session.get_outputs()}
        self.num_io_tensors = len(self._ports)
        self.device_memory_size_v2 = SCRATCH
        self._size = len(model)

    def get_engine_stat(self, stat: EngineStat) -> int:
        return self._size

    def get_tensor_name(self, index: int) -> str:
        return list(self._ports)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._ports[name][1] if name in self._ports else TensorIOMode.NONE

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[TYPES[self._ports[name][0].type]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in self._ports[name][0].shape)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, how: Any) -> IExecutionContext:
        return IExecutionContext(self, how)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, how: Any) -> None:
        strategy = how._strategy if isinstance(how, IRuntimeConfig) else how
        if strategy != ExecutionContextAllocationStrategy.USER_MANAGED:
            raise ValueError("the memory of a context is its user's here")
        if isinstance(how, IRuntimeConfig) and how._cache is not None:
            how._cache.kernels += 1
        self.active_optimization_profile = 0
        self._engine = engine
        self._inputs: dict[str, tuple[int, ...]] = {}
        self._outputs: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return index == 0

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % 256:
            raise ValueError("misaligned")
        self._scratch = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if shape[0] > FakeTensorRT.most:
            message = f"Static dimension mismatch for {name}"
            self._engine._logger.log(ILogger.Severity.ERROR, message)
            return False
        self._inputs[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if not self._outputs:  # As shape inference would find out.
            found = self._run({n: np.zeros(shape, self._kind(n)) for n, shape in self._inputs.items()})
            self._outputs = {n: values.shape for n, values in found.items()}
        return self._outputs[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        device = FakeTensorRT.devices[stream]
        device.enqueue("plan", lambda: self._execute(device))
        return True

    def _execute(self, device: StandInDevice) -> None:
        fed = {n: device.view(self._addresses[n], s, self._kind(n)).copy() for n, s in self._inputs.items()}
        device.view(*self._scratch_view()).fill(0xFF)
        for name, values in self._run(fed).items():
            np.copyto(device.view(self._addresses[name], values.shape, values.dtype), values)

    def _scratch_view(self) -> tuple[int, tuple[int], type]:
        return self._scratch[0], (self._scratch[1],), np.uint8

    def _kind(self, name: str) -> type:
        return np.int64 if self._engine.get_tensor_dtype(name) == DataType.INT64 else np.float32

    def _run(self, fed: dict[str, Any]) -> dict[str, Any]:
        names = [port.name for port in self._engine._session.get_outputs()]
        return dict(zip(names, self._engine._session.run(names, fed), strict=True))


class FakeTensorRT:
    """The module. devices: by stream. loads: plans that were deserialised. most: the greatest first dimension."""

    __version__ = "1.7.1.116"
    devices: dict[int, StandInDevice] = {}
    loads = 0
    most = 1 << 20
    DataType = DataType
    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    EngineStat = EngineStat
    ILogger = ILogger
    IRuntimeCache = IRuntimeCache
    IRuntimeConfig = IRuntimeConfig
    Runtime = Runtime
    ICudaEngine = ICudaEngine
    IExecutionContext = IExecutionContext


def toolkit(flavour: str = "tensorrt-rtx") -> Toolkit:
    """The module as a loaded flavour."""
    return Toolkit(flavour, FakeTensorRT.__version__, FakeTensorRT, make_logger(FakeTensorRT))
