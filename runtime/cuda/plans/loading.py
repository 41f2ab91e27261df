"""Loading plans, and holding them to what the manifest says of them; a process loads each plan of a GPU once.

Built, not yet run on a GPU. The calls are those of TensorRT 10.13 and newer, and of TensorRT for RTX 1.7.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from engines.schema import Network, Port
from engines.tensorrt import Toolkit, listening
from runtime.cuda.errors import DeviceMemoryError, mebibytes
from runtime.errors import BackendError

_ABOUT_MEMORY = re.compile(r"out ?of ?memory|memory allocation|cudaMalloc|bad_alloc", re.IGNORECASE)
_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64", "int32": "INT32"}
"""TensorRT's names of the manifest's types."""

SHARED: WeakValueDictionary[Hashable, LoadedPlan] = WeakValueDictionary()
"""The plans that are loaded now."""

_LOADING = threading.Lock()


@dataclass(frozen=True)
class LoadedPlan:
    """A plan on the GPU. trt_engine: TensorRT's ICudaEngine; runtime is kept because the engine needs it.

    weight_bytes: of its weights there. activation_bytes: scratch memory of one evaluation at the greatest shapes.
    """

    name: str
    toolkit: Toolkit
    runtime: Any
    trt_engine: Any
    weight_bytes: int
    activation_bytes: int


def load_plan(name: str, plan: memoryview, spec: Network, toolkit: Toolkit, gpu: str) -> LoadedPlan:
    """Deserialise the verified bytes of a plan on the GPU whose context is current; ``gpu`` is its name for messages.

    The bytes are read once and may go afterwards. Raises BackendError where TensorRT does not take the plan or its
    ports are not those of ``spec``, DeviceMemoryError where there is no room for it.
    """
    trt = toolkit.trt
    what = f"{toolkit.flavour} {toolkit.version}"
    with listening(toolkit.logger) as log:
        try:
            runtime = trt.Runtime(toolkit.logger)
        except (TypeError, RuntimeError) as error:  # What the bindings make of a runtime that is not there.
            raise BackendError(f"{what} does not start on {gpu}: {log.reason}; update the driver") from error
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            if any(is_about_memory(error) for error in log.errors):
                raise DeviceMemoryError(
                    f"the {name} network's plan of {mebibytes(plan.nbytes)} does not fit into {gpu}: use --low-vram, a "
                    "bundle of fp8, or close what else uses this GPU"
                )
            raise BackendError(
                f"the {name} network's plan {spec.file!r} does not load with {what} on {gpu} ({log.reason}): a plan is "
                "for one kind of GPU and one version of TensorRT: build it here with python -m export.engine"
            )
    _check_ports(trt, name, spec, engine)
    return LoadedPlan(
        name=name,
        toolkit=toolkit,
        runtime=runtime,
        trt_engine=engine,
        weight_bytes=_weight_bytes(trt, engine, plan.nbytes),
        activation_bytes=max(int(engine.device_memory_size_v2), 0),
    )


def shared_plan(key: Hashable, load: Callable[[], LoadedPlan]) -> LoadedPlan:
    """The plan of that key, loaded where no session of the process has it: weights are on a GPU once.

    It is unloaded when the last one lets go of it; contexts of it must be gone before.
    """
    with _LOADING:
        if (plan := SHARED.get(key)) is None:
            plan = SHARED[key] = load()
        return plan


def is_about_memory(error: str) -> bool:
    """Whether what TensorRT says means that the GPU's memory is exhausted."""
    return _ABOUT_MEMORY.search(error) is not None


def _weight_bytes(trt: Any, engine: Any, plan_bytes: int) -> int:
    """What TensorRT says; a plan is little else than weights, where it does not say."""
    try:
        found = int(engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE))
    except AttributeError:  # Older releases.
        return plan_bytes
    return found if found > 0 else plan_bytes


def _check_ports(trt: Any, name: str, spec: Network, engine: Any) -> None:
    """The plan takes and gives exactly the ports of the manifest, in memory of the GPU."""
    found = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    listed = [port.name for port in (*spec.inputs, *spec.outputs)]
    if found != set(listed):
        raise BackendError(f"the {name} plan has the ports {sorted(found)}; the bundle's manifest says {listed}")
    for mode, ports in ((trt.TensorIOMode.INPUT, spec.inputs), (trt.TensorIOMode.OUTPUT, spec.outputs)):
        for port in ports:
            _check_port(trt, name, port, mode, engine)


def _check_port(trt: Any, name: str, port: Port, mode: Any, engine: Any) -> None:
    dims = tuple(engine.get_tensor_shape(port.name))
    fits = len(dims) == len(port.shape) and all(
        dim < 0 or isinstance(said, str) or dim == said for dim, said in zip(dims, port.shape, strict=True)
    )
    kind = engine.get_tensor_dtype(port.name)
    if engine.get_tensor_mode(port.name) != mode or kind != getattr(trt.DataType, _TYPES[port.dtype]) or not fits:
        raise BackendError(
            f"the {name} plan has {port.name!r} as {engine.get_tensor_mode(port.name)} {kind} {list(dims)}; the "
            f"bundle's manifest says {port.dtype} {list(port.shape)}"
        )
    if engine.get_tensor_location(port.name) != trt.TensorLocation.DEVICE:
        raise BackendError(f"the {name} plan wants {port.name!r} in main memory: it is a shape there, not a tensor")
