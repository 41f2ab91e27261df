"""A loaded plan as an engine of the pipeline: contexts at fixed shapes and addresses, put on the device's stream.

Built, not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from engines.memory.arena import ALIGNMENT
from engines.tensorrt import TensorRTLog, listening
from runtime.cuda.errors import memory_error
from runtime.cuda.interface import Bound, Device, Evaluation
from runtime.cuda.plans.loading import LoadedPlan, is_about_memory
from runtime.cuda.plans.runtime_cache import RuntimeCache
from runtime.errors import BackendError

_MOST = 16
"""Contexts of one plan: each takes memory of its own, and requests of many sizes could ask for any number."""

_Ports = Mapping[str, Bound]
_Key = tuple[tuple[tuple[str, Bound], ...], tuple[tuple[str, Bound], ...], int]


class TensorRTEngine:
    """See :class:`runtime.cuda.interface.Engine`."""

    def __init__(self, device: Device, plan: LoadedPlan, cache: RuntimeCache) -> None:
        self.name = plan.name
        self.weight_bytes = plan.weight_bytes
        self.activation_bytes = plan.activation_bytes
        self._device = device
        self._plan: LoadedPlan | None = plan
        self._cache = cache
        self._evaluations: dict[_Key, TensorRTEvaluation] = {}

    def bind(self, inputs: _Ports, outputs: _Ports, scratch: int) -> Evaluation:
        """An evaluation at these addresses and shapes; not while a CUDA graph is recorded.

        Raises BackendError where shapes do not fit the profile, DeviceMemoryError.
        """
        key = (tuple(sorted(inputs.items())), tuple(sorted(outputs.items())), scratch)
        if key in self._evaluations:
            return self._evaluations[key]
        if self._plan is None:
            raise BackendError(f"the {self.name} network was unloaded")
        if len(self._evaluations) >= _MOST:
            self._drop()
        with listening(self._plan.toolkit.logger) as log:
            made = self._make(self._plan, log, inputs, outputs, scratch)
        self._evaluations[key] = made
        return made

    def close(self) -> None:
        """Unload, after what is on the stream; may be called twice."""
        if self._plan is not None:
            self._drop()
            self._plan = None

    def _drop(self) -> None:
        """Let go of all contexts, and of the graphs that use them."""
        self._device.synchronize()
        self._device.forget()
        self._evaluations.clear()

    def _make(
        self, plan: LoadedPlan, log: TensorRTLog, inputs: _Ports, outputs: _Ports, scratch: int
    ) -> TensorRTEvaluation:
        context, owner = self._cache.make_context(plan.trt_engine)
        if context is None:
            self._fail(log, "its execution context cannot be made")
        # A plan of ours has one profile, which is also a context's first.
        stream = self._device.stream
        if context.active_optimization_profile != 0 and not context.set_optimization_profile_async(0, stream):
            self._fail(log, "its profile cannot be chosen")
        if self.activation_bytes:
            context.set_device_memory(scratch, self.activation_bytes)
        for name, bound in inputs.items():
            if not context.set_input_shape(name, bound.shape):
                self._fail(log, f"the shape {list(bound.shape)} of {name!r} is outside the plan's profile")
        for name, bound in outputs.items():
            shape = tuple(context.get_tensor_shape(name))
            if shape != bound.shape:
                self._fail(log, f"{name!r} has the shape {list(shape)} in the plan, not {list(bound.shape)}")
        for name, bound in (*inputs.items(), *outputs.items()):
            if bound.address % ALIGNMENT or not context.set_tensor_address(name, bound.address):
                self._fail(log, f"{name!r} cannot be bound at {bound.address:#x}")
        return TensorRTEvaluation(self, context, owner)

    def _fail(self, log: TensorRTLog, what: str) -> NoReturn:
        if any(is_about_memory(error) for error in log.errors):
            raise memory_error(f"an evaluation of the {self.name} network", self.activation_bytes)
        raise BackendError(
            f"the {self.name} network: {what}" + (f"; TensorRT says: {log.reason}" if log.errors else "")
        )

    def enqueue(self, context: Any) -> None:
        """Put an evaluation of ``context`` on the stream. Raises BackendError."""
        if self._plan is None:
            raise BackendError(f"the {self.name} network was unloaded")
        with listening(self._plan.toolkit.logger) as log:
            if not context.execute_async_v3(self._device.stream):
                self._fail(log, "its evaluation cannot be put on the stream")


@dataclass(frozen=True)
class TensorRTEvaluation:
    """A context whose shapes and addresses stay, so that a CUDA graph may hold its work.

    owner: what TensorRT needs as long as the context.
    """

    engine: TensorRTEngine
    context: Any
    owner: Any

    def enqueue(self) -> None:
        """Put it on the device's stream. Raises BackendError."""
        self.engine.enqueue(self.context)
