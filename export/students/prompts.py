"""The prompts that students are measured on: lists, and what a backbone is told of them.

The encodings are made by the very networks that are exported, streamed where they are large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import CalibrationError
from export.networks.streaming import choose_placement, open_module
from export.reporting import Report, silent

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from arcflow.architectures.conditioning import ConditioningDtype
    from export.architectures.base import Architecture
    from export.networks.base import Network
    from export.students.rollout import Evaluate

PROMPTS = Path(__file__).parents[1] / "prompts"
"""The prompt lists that come with the project: ``calibration.txt``, and one for a model that needs its own."""

BATCH = 8
"""Prompts that a text encoder takes at a time."""


def default_prompts(model: str) -> Path:
    """The shipped list of prompts for that model."""
    own = PROMPTS / f"{model}.txt"
    return own if own.is_file() else PROMPTS / "calibration.txt"


def read_prompts(path: Path, number: int | None = None) -> tuple[str, ...]:
    """Prompts of a UTF-8 text file, one a line; empty lines and lines that begin with ``#`` are left out.

    number: the first so many of them. Raises CalibrationError where there are none, or fewer.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"cannot read the prompts {path}: {error}; give a UTF-8 text file, one a line"
        ) from error
    prompts = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if number is not None and not 0 < number <= len(prompts):
        raise CalibrationError(f"--num is {number}, {path} has {len(prompts)} prompts; choose 1 to {len(prompts)}")
    if not prompts:
        raise CalibrationError(f"{path} has no prompts; write one a line")
    return prompts[:number]


@dataclass(frozen=True)
class Prompted:
    """The encodings of prompts, by backbone port, each [prompts, ...] in the CPU's memory.

    guidance: fed where the backbone has such a port; trained: what the student was trained in, whose rounding of noise
    level and guidance it expects; rows, columns: of image tokens.
    """

    architecture: Architecture
    encodings: Mapping[str, Tensor]
    guidance: float
    trained: ConditioningDtype
    rows: int
    columns: int

    def __len__(self) -> int:
        return len(next(iter(self.encodings.values())))

    def ports(self, rows: slice) -> dict[str, Tensor]:
        """All input ports of those prompts but hidden_states and timestep; floating ports are float32."""
        chosen = {name: tensor[rows] for name, tensor in self.encodings.items()}
        chosen = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in chosen.items()}
        return self.architecture.ports(chosen, self.guidance, self.trained, self.rows, self.columns)

    def calling(self, evaluate: Evaluate) -> Evaluate:
        """That backbone, called with exact noise levels and fed those which the student saw in training."""
        from arcflow.students import architecture

        as_trained = architecture(self.architecture.name).as_trained

        def fed(*, timestep: Tensor, **others: Tensor) -> Sequence[Tensor]:
            return evaluate(timestep=as_trained(timestep, self.trained), **others)

        return fed


def encode(
    network: Network, inputs: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device, report: Report = silent,
    stored: Sequence[str] = (),
) -> Tensor:  # fmt: skip
    """One text encoder over all prompts, some at a time; its only output, in ``dtype`` on the CPU.

    stored: weights that it is to have as FP8 leaves them.
    """
    import torch

    from export.fp8.policy import layer_of
    from export.fp8.simulation import fake_quantised

    parts = []
    total = len(inputs["input_ids"])
    report(network.name, 0, total)
    module: Any = open_module(network, dtype, device, choose_placement(network, dtype, device))
    with torch.no_grad(), fake_quantised(module.network, dict.fromkeys(map(layer_of, stored))):
        for start in range(0, total, BATCH):
            batch = {name: tensor[start : start + BATCH].to(device) for name, tensor in inputs.items()}
            (output,) = module(**batch)
            parts.append(output.to("cpu", dtype))
            report(network.name, min(start + BATCH, total), total)
    return torch.cat(parts)
