"""Networks in ONNX Runtime's CPU behind `Engine`, over the stand-in device: the order of work, without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engines.bundle import Bundle
from engines.schema import Network
from runtime.cuda.host import CudaHost
from runtime.cuda.interface import Bound, Evaluation
from runtime.errors import BackendError
from runtime.hosts.onnx_network import OnnxRuntimeNetwork
from runtime.pipeline import Pipeline
from runtime.text import PromptTokenizer
from tests.runtime.cuda.stand_in import StandInDevice

SCRATCH = 4096


class OnnxEngine:
    """A network whose evaluations read and write the stand-in's memory when the stream comes to them.

    batches: of each evaluation that ran. It also spoils its scratch memory, as a plan would.
    """

    def __init__(self, device: StandInDevice, name: str, network: OnnxRuntimeNetwork, spec: Network) -> None:
        self.name = name
        self.weight_bytes = 1000
        self.activation_bytes = SCRATCH
        self.batches: list[int] = []
        self.bound = 0
        self.open = True
        self._device = device
        self._network = network
        self._spec = spec
        self._made: dict[Any, Evaluation] = {}

    def bind(self, inputs: Mapping[str, Bound], outputs: Mapping[str, Bound], scratch: int) -> Evaluation:
        if not self.open:
            raise BackendError(f"the {self.name} network was unloaded")
        key = (tuple(sorted(inputs.items())), tuple(sorted(outputs.items())), scratch)
        if key not in self._made:
            self.bound += 1
            self._made[key] = OnnxEvaluation(self, dict(inputs), dict(outputs), scratch)
        return self._made[key]

    def close(self) -> None:
        self.open = False
        self._made.clear()

    def run(self, inputs: Mapping[str, Bound], outputs: Mapping[str, Bound], scratch: int) -> None:
        if not self.open:
            raise BackendError(f"the {self.name} network was unloaded")
        types = {port.name: port.dtype for port in (*self._spec.inputs, *self._spec.outputs)}
        view = self._device.view
        fed = {name: view(bound.address, bound.shape, types[name]).copy() for name, bound in inputs.items()}
        view(scratch, (SCRATCH,), np.uint8).fill(0xFF)
        for name, values in self._network.run(fed).items():
            np.copyto(view(outputs[name].address, outputs[name].shape, types[name]), values)
        self.batches.append(len(next(iter(fed.values()))))

    def enqueue(self, *arguments: Any) -> None:
        self._device.enqueue(self.name, lambda: self.run(*arguments))


class OnnxEvaluation:
    def __init__(self, engine: OnnxEngine, *arguments: Any) -> None:
        self._engine = engine
        self._arguments = arguments

    def enqueue(self) -> None:
        self._engine.enqueue(*self._arguments)


class Session:
    """A pipeline over the stand-in. engines: those loaded now, by name; loads: names in the order of loading."""

    def __init__(self, bundle: Bundle, device: StandInDevice | None = None, **options: Any) -> None:
        manifest = bundle.manifest
        self.device = device or StandInDevice(64 << 20)
        self.engines: dict[str, OnnxEngine] = {}
        self.loads: list[str] = []
        networks = {
            name: OnnxRuntimeNetwork(
                name, bundle.read(spec.file), spec, 1, {path: bundle.map(path) for path in spec.data}
            )
            for name, spec in manifest.networks.items()
        }

        def load(name: str) -> OnnxEngine:
            self.loads.append(name)
            self.engines[name] = OnnxEngine(self.device, name, networks[name], manifest.networks[name])
            return self.engines[name]

        loaders = {name: (lambda name=name: load(name)) for name in manifest.networks}
        tokenizers = {n: PromptTokenizer(n, bundle.read(spec.file), spec) for n, spec in manifest.tokenizers.items()}
        host = CudaHost(manifest, self.device, loaders, tokenizers, backend="stand-in", **options)
        self.pipeline = Pipeline(host)
