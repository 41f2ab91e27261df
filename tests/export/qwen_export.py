"""The networks of the small Qwen-Image pipeline in float32, exported once a session, each when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from export.architectures.qwen import QWEN
from export.assembling.attach import attach_inline
from export.assembling.graph import OPSET, finish, trace
from export.networks.base import Network
from export.passes.transpose_weights import transpose_weights
from export.weights.merge import MergedStudent, merge
from tests.export.pipelines import Sources, small_qwen


@dataclass(frozen=True)
class Exported:
    """The sources, the merged student, every network's description, and every network's ONNX bytes by name."""

    sources: Sources
    student: MergedStudent
    networks: dict[str, Network]
    model: Callable[[str], bytes]

    def run(self, name: str, inputs: dict[str, torch.Tensor]) -> list[np.ndarray[Any, Any]]:
        """The outputs of one network in ONNX Runtime."""
        session = onnxruntime.InferenceSession(self.model(name), providers=["CPUExecutionProvider"])
        outputs: list[np.ndarray[Any, Any]] = session.run(None, {key: value.numpy() for key, value in inputs.items()})
        return outputs


def export_qwen(folder: Path) -> Exported:
    """The small pipeline, written under ``folder``, and its networks."""
    sources = small_qwen(folder)
    student = merge(sources.base / "transformer", sources.adapter)
    networks = {name: QWEN.network(name, sources.base, student) for name in QWEN.parts}
    return Exported(sources, student, networks, cache(lambda name: export_inline(networks[name])))


def export_inline(network: Network) -> bytes:
    """The network as one ONNX file in float32 with its weights inside, ready for a CPU."""
    model = trace(network, "float32", OPSET)
    attach_inline(model, network)
    transpose_weights(model)
    return finish(model, network)
