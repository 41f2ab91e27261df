"""The teacher's own images, which all students are held to: made once, kept on disk, shared by all processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from arcflow.evaluation.samplers import Advance
from arcflow.sources.weights import open_backbone
from arcflow.studying.ledger import locked
from arcflow.studying.subject import Subject
from foundation.files import atomic_file


@dataclass(frozen=True)
class Reference:
    """Packed latents [N, S, C] of the teacher.

    path: at each of the subject's levels, by the many steps from the held-out noises, the last at sigma 0; few: by as
    many steps as students take, by their number; diverse, looked_at: by the many steps from those sets.
    """

    path: dict[float, Tensor]
    few: dict[int, Tensor]
    diverse: Tensor
    looked_at: Tensor

    @property
    def x(self) -> Tensor:
        """Where the many steps end."""
        return self.path[0.0]


def open_reference(subject: Subject, folder: Path, advance: Advance) -> Reference:
    """Read it, or make it while other processes wait. Raises BackboneError, ArcFlowError where it cannot be kept."""
    key = subject.key()
    path = folder / f"teacher-{key}.safetensors"
    with locked(folder, f"teacher-{key}", wait=True):
        found = _read(path)
        if found is None:
            found = _make(subject, advance)
            with atomic_file(path) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in found.items()}, temporary)
    numbers = [int(name.partition("/")[2]) for name in found if name.startswith("few/")]
    return Reference(
        {level: found[f"path/{number}"] for number, level in enumerate(subject.levels)},
        {steps: found[f"few/{steps}"] for steps in numbers},
        found["diverse"],
        found["looked_at"],
    )


@torch.no_grad()
def _make(subject: Subject, advance: Advance) -> dict[str, Tensor]:
    settings = subject.recipe.evaluate
    teacher = open_backbone(subject.base, "fp32", torch.device("cpu"))
    many = subject.teacher(teacher, settings.reference_steps)
    name = f"teacher, {settings.reference_steps} steps"
    states = subject.sample(many, subject.held_out, name, advance).path
    found = {f"path/{number}": states[level] for number, level in enumerate(subject.levels)}
    for steps in settings.nfe:
        ends = subject.sample(subject.teacher(teacher, steps), subject.held_out, f"teacher, {steps} steps", advance)
        found[f"few/{steps}"] = ends.x
    found["diverse"] = subject.sample(many, subject.diverse, f"{name}, diversity", advance).x
    found["looked_at"] = subject.sample(many, subject.looked_at, f"{name}, looks", advance).x
    return found


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file, None where there is none or it is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError):
        return None
