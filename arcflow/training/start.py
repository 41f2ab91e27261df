"""A distillation that starts from an adapter, not from fresh LoRA and the teacher's head."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from arcflow.adapter import Adapter, read_adapter, trained_tensors
from arcflow.errors import AdapterError
from arcflow.recipe import StudentRecipe
from arcflow.sources.base import Base
from arcflow.sources.digest import digest_of
from arcflow.sources.hub import resolve_adapter
from arcflow.students import Student, architecture_of_adapter

_LISTED = 3
_OTHER = "give another --init, or another --base or --recipe"


@dataclass(frozen=True)
class Start:
    """Where a student starts from.

    source: the adapter's folder or hub id as it was given; tensors: its values by their names in a student's adapter
    (:func:`arcflow.adapter.trained_tensors`), in the file's dtype.
    """

    source: str
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 of names and values: the same in whatever folder and layout they lie."""
        return digest_of(self.tensors)

    @torch.no_grad()
    def fill(self, student: Student) -> None:
        """Overwrite all that the student trains, wherever it is."""
        for name, tensor in trained_tensors(student).items():
            tensor.copy_(self.tensors[name])


def read_start(source: str | Path, base: Base, recipe: StudentRecipe) -> Start:
    """The adapter in a folder or of a hub id, as the start of a student of that base.

    Also one in the published layout. Raises SourceError where there is none, AdapterError where it is damaged, or does
    not fit the base or the recipe.
    """
    folder = resolve_adapter(source)
    adapter = read_adapter(folder)
    if architecture_of_adapter(adapter.config.class_name) is not base.architecture:
        raise AdapterError(
            f"--init {source} is an adapter for {adapter.config.class_name}, and the recipe's architecture is "
            f"{base.architecture.NAME}; {_OTHER}"
        )
    _check_recipe(source, adapter, recipe)
    tensors = {f"{name}.lora_A.weight": a for name, (a, _) in adapter.lora.items()}
    tensors |= {f"{name}.lora_B.weight": b for name, (_, b) in adapter.lora.items()} | adapter.whole
    with torch.device("meta"):
        wanted = trained_tensors(Student(base.blank(), recipe, base.architecture.NAME))
    faults = {
        "lacks": wanted.keys() - tensors.keys(),
        "has, and students of this base do not train,": tensors.keys() - wanted.keys(),
        "has in another shape": {k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape},
    }
    for fault, keys in faults.items():
        if keys:
            more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
            raise AdapterError(f"--init {source} {fault} {', '.join(sorted(keys)[:_LISTED])}{more}; {_OTHER}")
    return Start(str(source), tensors)


def _check_recipe(source: str | Path, adapter: Adapter, recipe: StudentRecipe) -> None:
    """Raise AdapterError where modes or rank are not the recipe's."""
    modes, ranks = adapter.config.modes, {a.shape[0] for a, _ in adapter.lora.values()}
    if modes != recipe.modes:
        linear = {modes: ", or add --student linear", recipe.modes: "; --student linear has 1"}.get(1, "")
        raise AdapterError(
            f"--init {source} has modes = {modes}, and the student {recipe.modes}: set modes = {modes} under [student] "
            f"of the recipe{linear}"
        )
    if len(ranks) > 1:
        raise AdapterError(
            f"--init {source} has LoRA of ranks {', '.join(map(str, sorted(ranks)))}: a student starts from one of a "
            "single rank"
        )
    if ranks and ranks != {recipe.rank}:
        (rank,) = ranks
        raise AdapterError(
            f"--init {source} has LoRA of rank {rank}, and the student {recipe.rank}: set rank = {rank} under "
            "[student] of the recipe"
        )
