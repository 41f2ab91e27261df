"""Running one network: the small interface the pipeline needs, and ONNX Runtime behind it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BackendError

if TYPE_CHECKING:
    from engines.manifest import Network as NetworkSpec

Array = NDArray[Any]

_CPU = "CPUExecutionProvider"
_MAX_DEFAULT_THREADS = 8


class Network(Protocol):
    """One loaded network."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, for inputs by name; raises BackendError."""
        ...


class OnnxRuntimeNetwork:
    """A network in ONNX Runtime on the CPU, built from the verified bytes of its files (no path is opened)."""

    def __init__(
        self, name: str, model: bytes, spec: NetworkSpec, threads: int, data: Mapping[str, memoryview] | None = None
    ) -> None:
        """Load ``model`` with ``threads`` compute threads.

        data: the content of each of ``spec.data``, by path; it is copied. Raises BackendError where the model is not
        what ``spec`` says, or needs any other file.
        """
        import onnxruntime

        self.name = name
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
            self._session = onnxruntime.InferenceSession(model, options, providers=[_CPU])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
            raise BackendError(f"ONNX Runtime cannot load the {name} network {spec.file!r}: {error}") from error
        # A provider that cannot start is replaced in silence: look at what is there.
        if self._session.get_providers() != [_CPU]:
            raise BackendError(f"the {name} network runs on {self._session.get_providers()}, not on {_CPU}")
        self._outputs = [port.name for port in spec.outputs]
        self._check_ports("inputs", [port.name for port in spec.inputs], self._session.get_inputs())
        self._check_ports("outputs", self._outputs, self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, for inputs by name; raises BackendError."""
        try:
            outputs = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in inputs.items())
            raise BackendError(f"the {self.name} network failed on {shapes}: {error}") from error
        return dict(zip(self._outputs, outputs, strict=True))

    def _check_ports(self, kind: str, expected: list[str], ports: Any) -> None:
        actual = [port.name for port in ports]
        if sorted(actual) != sorted(expected):
            raise BackendError(f"the {self.name} network has {kind} {actual}; the bundle's manifest says {expected}")


def default_threads() -> int:
    """The cores this process may use, at most 8."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # Not Linux.
        cores = os.cpu_count() or 1
    return min(cores, _MAX_DEFAULT_THREADS)
