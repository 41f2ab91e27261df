"""A student's few evaluations, of any backbone that is called by port names.

That is a module of a :class:`Network`, its reference in torch, or its ONNX graph: calibration, sensitivity and the
quality gate all run this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from arcflow.field import MomentumField

_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"

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


def cpu_session(model: bytes | str, folder: Path | None = None, threads: int = 1) -> Any:
    """An ONNX model, its bytes or its path, in ONNX Runtime on the CPU.

    folder: of its external data. threads: 0 for all.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if folder is not None:
        options.add_session_config_entry(_EXTERNAL_FOLDER, str(folder.absolute()))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_evaluate(*models: bytes | str) -> Evaluate:
    """ONNX networks in ONNX Runtime on the CPU, called as one module is: each is given what came in or was made before.

    The results are those of the last one.
    """
    import torch

    sessions = [cpu_session(model) for model in models]

    def evaluate(**inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        values: dict[str, Any] = {name: tensor.numpy() for name, tensor in inputs.items()}
        made: dict[str, Any] = {}
        for session in sessions:
            outputs = [port.name for port in session.get_outputs()]
            found = session.run(outputs, {port.name: values[port.name] for port in session.get_inputs()})
            made = dict(zip(outputs, found, strict=True))
            values |= made
        return [torch.from_numpy(array) for array in made.values()]

    return evaluate
