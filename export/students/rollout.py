"""A student's few evaluations, of any backbone that is called by port names.

That is a module of a :class:`Network`, its reference in torch, or its ONNX graph: calibration, sensitivity and the
quality gate all run this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from arcflow.field import MomentumField

Evaluate = Callable[..., Sequence["Tensor"]]
"""A backbone: its input ports by name -> (means, logweights, loggammas)."""

Ports = Mapping[str, "Tensor"]
"""The conditions of a batch: all input ports but hidden_states and timestep."""


def rollout(evaluate: Evaluate, noise: Tensor, ports: Ports, sigmas: Sequence[float]) -> Tensor:
    """From noise [B, S, C] to the latent at the last of ``sigmas`` (falling), as :func:`arcflow.sampling.integrate`.

    The solver computes in float32, on the noise's device.
    """
    from arcflow.field import MomentumField
    from arcflow.sampling import integrate

    def field(x: Tensor, sigma: Tensor) -> MomentumField:
        found = evaluate(hidden_states=x, timestep=sigma, **ports)
        return MomentumField(*(tensor.to(x.device) for tensor in found))

    return integrate(field, noise.float(), sigmas)


def noise_of(index: int, tokens: int, channels: int) -> Tensor:
    """The noise [tokens, channels] of the image with that number; the same on every machine of one torch version."""
    import torch

    return torch.randn((tokens, channels), generator=torch.Generator().manual_seed(index))


def noises(numbers: range, tokens: int, channels: int) -> Tensor:
    """The noise [numbers, tokens, channels] of several images."""
    import torch

    return torch.stack([noise_of(number, tokens, channels) for number in numbers])


def onnx_evaluate(model: bytes | str, threads: int = 1) -> Evaluate:
    """An ONNX backbone (the file's bytes or its path) in ONNX Runtime on the CPU, called as a module is."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def evaluate(**inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        feeds: dict[str, Any] = {name: tensor.numpy() for name, tensor in inputs.items()}
        return [torch.from_numpy(array) for array in session.run(names, feeds)]

    return evaluate
