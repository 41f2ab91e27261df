"""The pipeline over `CudaDevice` itself: ``python -m tests.runtime.cuda.device.whole BUNDLE``; the tests play libcuda.

Networks run in ONNX Runtime as host functions on the stream, so that CUDA graphs hold and replay them. Says nothing and
returns 0 where latents are those of the CPU's pipeline.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engines.bundle import open_bundle
from engines.schema import Network
from runtime.cuda.device.gpu import CudaDevice, open_device
from runtime.cuda.host import CudaHost
from runtime.cuda.interface import Bound, Evaluation
from runtime.hosts.onnx_network import OnnxRuntimeNetwork
from runtime.pipeline import Pipeline
from runtime.text import PromptTokenizer

PROMPTS = ["a smiling face with sunglasses", "a red apple"]
_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class HostEngine:
    """A network that the stream calls on the host; the played device's memory is main memory."""

    weight_bytes = activation_bytes = 4096

    def __init__(self, device: CudaDevice, name: str, network: OnnxRuntimeNetwork, spec: Network) -> None:
        self.name = name
        self._device = device
        self._network = network
        self._types = {port.name: np.dtype(port.dtype) for port in (*spec.inputs, *spec.outputs)}
        self._made: dict[Any, HostEvaluation] = {}

    def bind(self, inputs: Mapping[str, Bound], outputs: Mapping[str, Bound], scratch: int) -> Evaluation:
        key = (*sorted(inputs.items()), *sorted(outputs.items()), scratch)
        if key not in self._made:

            def run(_: Any) -> None:
                made = self._network.run({name: self._view(name, bound).copy() for name, bound in inputs.items()})
                for name, values in made.items():
                    np.copyto(self._view(name, outputs[name]), values)

            self._made[key] = HostEvaluation(self._device, run)
        return self._made[key]

    def close(self) -> None:
        """Evaluations stay: they may be on the stream."""

    def _view(self, name: str, bound: Bound) -> Any:
        kind = self._types[name]
        size = math.prod(bound.shape) * kind.itemsize
        data = np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(bound.address))
        return data.view(kind).reshape(bound.shape)


class HostEvaluation:
    def __init__(self, device: CudaDevice, run: Callable[[Any], None]) -> None:
        self._device = device
        self._function = _FUNCTION(run)

    def enqueue(self) -> None:
        from cuda.bindings import driver

        address = ctypes.cast(self._function, ctypes.c_void_p).value
        (status,) = driver.cuLaunchHostFunc(self._device.stream, driver.CUhostFn(address), 0)
        if int(status):
            raise RuntimeError(f"the stream does not take a host function: {status}")


def main(folder: Path) -> int:
    """Generate on both, thrice the same way, and with previews and little memory."""
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    cpu = Pipeline.open(folder, threads=1)
    for low_vram in (False, True):
        device = open_device()
        done: list[str] = []
        replay = device.replay

        def listen(key: Any, work: Any, replay: Any = replay, done: list[str] = done) -> str:
            done.append(replay(key, work))
            return done[-1]

        device.replay = listen  # type: ignore[method-assign]
        loaders = {
            name: (
                lambda name=name, spec=spec, device=device: HostEngine(
                    device, name, OnnxRuntimeNetwork(name, bundle.read(spec.file), spec, 1), spec
                )
            )
            for name, spec in manifest.networks.items()
        }
        tokenizers = {n: PromptTokenizer(n, bundle.read(spec.file), spec) for n, spec in manifest.tokenizers.items()}
        pipeline = Pipeline(CudaHost(manifest, device, loaders, tokenizers, backend="", low_vram=low_vram))
        for seed in range(5):
            for options in ({}, {"previews": 2, "nfe": 3}, {"num_images": 3, "width": 64}):
                ours = pipeline.generate(PROMPTS, seed=seed, **options)  # type: ignore[arg-type]
                expected = cpu.generate(PROMPTS, seed=seed, **options)  # type: ignore[arg-type]
                np.testing.assert_allclose(ours.latents, expected.latents, rtol=0, atol=1e-5)
                stages = [span.stage for span in ours.spans]
                batches = 1 if "num_images" not in options else 2
                assert stages.count("backbone") == ours.settings.nfe * batches, stages
        assert done.count("replayed") > done.count("eager"), done
        assert not device.refusals, device.refusals
        assert device.memory_used() > 0
        pipeline.close()
        assert device.memory_used() == 0
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
