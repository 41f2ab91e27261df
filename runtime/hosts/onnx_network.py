"""Running one network: the small interface the pipeline needs, and ONNX Runtime behind it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from runtime.architectures.base import Array
from runtime.errors import BackendError

if TYPE_CHECKING:
    from engines.schema import Network
    from runtime.hosts.onnx_cuda import Placement

_CPU = "CPUExecutionProvider"
_MAX_DEFAULT_THREADS = 8


class LoadedNetwork(Protocol):
    """A network that is ready to run."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, for inputs by name; raises BackendError."""


class OnnxRuntimeNetwork:
    """A network in ONNX Runtime, built from the verified bytes of its files (no path is opened).

    placement: where its nodes are; None on the CPU, where all of them are.
    """

    placement: Placement | None = None

    def __init__(
        self,
        name: str,
        model: bytes,
        spec: Network,
        threads: int,
        data: Mapping[str, memoryview] | None = None,
        gpu: int | None = None,
    ) -> None:
        """Load ``model`` with ``threads`` compute threads; on the GPU of that number, or on the CPU.

        data: the content of each of ``spec.data``, by path; it is copied. Raises BackendError where the model is not
        what ``spec`` says, or needs any other file; DeviceError, one of them, where the GPU cannot take it.
        """
        import onnxruntime

        self.name = name
        self._gpu = gpu
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # Failures come back as exceptions; the log would repeat them on stderr.
        # One or two evaluations a process: an arena and its plans cost more than they save, idle spinning costs a core.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Where else a model's weights could be looked for: nowhere.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        try:
            if data:
                names = [PurePosixPath(path).name for path in data]  # As the model beside them calls them.
                sizes = [len(view) for view in data.values()]
                options.add_external_initializers_from_files_in_memory(names, list(data.values()), sizes)
            self._session = self._start(model, options)
        except BackendError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
            raise self._error(f"ONNX Runtime cannot load the {name} network {spec.file!r}", error) from error
        self._outputs = [port.name for port in spec.outputs]
        self._check_ports("inputs", [port.name for port in spec.inputs], self._session.get_inputs())
        self._check_ports("outputs", self._outputs, self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, for inputs by name; raises BackendError."""
        try:
            outputs = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in inputs.items())
            raise self._error(f"the {self.name} network failed on {shapes}", error) from error
        return dict(zip(self._outputs, outputs, strict=True))

    def _start(self, model: bytes, options: Any) -> Any:
        """A session on the provider that was asked for: one that cannot start is replaced in silence, so it is seen."""
        import onnxruntime

        if self._gpu is None:
            session = onnxruntime.InferenceSession(model, options, providers=[_CPU])
            if session.get_providers() != [_CPU]:
                raise BackendError(f"the {self.name} network runs on {session.get_providers()}, not on {_CPU}")
            return session
        from runtime.hosts import onnx_cuda

        session, self.placement = onnx_cuda.start(self.name, model, options, self._gpu)
        return session

    def _error(self, doing: str, error: Exception) -> BackendError:
        if self._gpu is None:
            return BackendError(f"{doing}: {error}")
        from runtime.hosts.onnx_cuda import explain

        return explain(error, doing)

    def _check_ports(self, kind: str, expected: list[str], ports: Any) -> None:
        actual = [port.name for port in ports]
        if sorted(actual) != sorted(expected):
            raise BackendError(f"the {self.name} network has {kind} {actual}; the bundle's manifest says {expected}")


def describe(networks: Iterable[LoadedNetwork]) -> str:
    """What runs those networks, for a person: "ONNX Runtime 1.32.0, CPUExecutionProvider".

    Of a GPU, how many nodes it took, and how many of the shapes' arithmetic it left to the CPU.
    """
    import onnxruntime

    head = f"ONNX Runtime {onnxruntime.__version__}"
    placed = [found for network in networks if (found := getattr(network, "placement", None)) is not None]
    if not placed:
        return f"{head}, {_CPU}"
    there = sum(found.nodes[found.provider] for found in placed)
    here = sum(sum(found.nodes.values()) for found in placed) - there
    kinds = sorted({kind for found in placed for kind in found.on_cpu})
    rest = f", {here} on the CPU ({', '.join(kinds)})" if here else ""
    return f"{head}, {placed[0].provider}: {there} nodes on the GPU{rest}"


def default_threads() -> int:
    """The cores this process may use, at most 8."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # Not Linux.
        cores = os.cpu_count() or 1
    return min(cores, _MAX_DEFAULT_THREADS)
