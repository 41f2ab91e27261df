"""The models that can be built, and what each may be built as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.manifest import Limits, Range
from export.errors import ExportError

_FOLDER = Path(__file__).resolve().parents[1] / "models"


@dataclass(frozen=True)
class ModelSpec:
    """A model by name.

    precisions, targets: what it can be built as, the default first; base, adapter: folders taken unless others are
    given; limits: shapes the bundle promises; guidance: fed to the backbone where the adapter names none.
    """

    name: str
    precisions: tuple[str, ...]
    targets: tuple[str, ...]
    base: Path
    adapter: Path
    limits: Limits
    guidance: float


MODELS: Mapping[str, ModelSpec] = {
    "tiny": ModelSpec(
        name="tiny",
        precisions=("fp32",),
        targets=("cpu",),
        base=_FOLDER / "tiny" / "teacher",
        adapter=_FOLDER / "tiny" / "adapter",
        limits=Limits(
            batch=Range(1, 1, 16),
            width=Range(16, 32, 64),
            height=Range(16, 32, 64),
            text_tokens=Range(12, 12, 12),
            multiple=8,
        ),
        guidance=2.0,
    ),
}


def choose(model: str, precision: str, target: str) -> ModelSpec:
    """The model of that name, if it can be built so. Raises ExportError, which lists what is allowed."""
    if model not in MODELS:
        raise ExportError(f"--model {model} cannot be built; allowed: {', '.join(MODELS)}")
    spec = MODELS[model]
    for option, value, allowed in (("precision", precision, spec.precisions), ("target", target, spec.targets)):
        if value not in allowed:
            raise ExportError(f"--{option} {value} cannot be built for {model}; allowed: {', '.join(allowed)}")
    return spec
