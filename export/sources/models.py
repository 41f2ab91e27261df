"""The models that can be built: where their parts come from and what a bundle of theirs promises unless told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.schema import Limits, Range
from export.errors import ExportError
from export.precision import Precision

_FOLDER = Path(__file__).resolve().parents[2] / "models"


@dataclass(frozen=True)
class ModelSpec:
    """A model by name.

    architecture: its architecture ("flux", "qwen"); base, adapter: a folder or a hub id, taken unless another is
    given; limits: shapes the bundle promises; precision, target: built unless told otherwise, target None for that of
    the machine (:func:`export.tensorrt.flavours.own_target`); calibration: scales for fp8 that come with the project;
    keep_high: patterns of weights that fp8 leaves out for this model, beyond the architecture's own.
    """

    name: str
    architecture: str
    base: str
    adapter: str
    limits: Limits
    precision: Precision = Precision.BF16
    target: str | None = None
    calibration: Path | None = None
    keep_high: tuple[str, ...] = ()


def _limits(batch: int, side: tuple[int, int, int], text: tuple[int, int, int], multiple: int) -> Limits:
    """One image or up to ``batch`` of them; least, usual and greatest side in pixels and number of text tokens."""
    return Limits(Range(1, 1, batch), Range(*side), Range(*side), Range(*text), multiple)


MODELS: Mapping[str, ModelSpec] = {
    "tiny": ModelSpec(
        name="tiny",
        architecture="flux",
        base=str(_FOLDER / "tiny" / "teacher"),
        adapter=str(_FOLDER / "tiny" / "adapter"),
        limits=_limits(16, (32, 64, 128), (12, 12, 12), multiple=16),
        precision=Precision.FP16,
        target="cpu",
        calibration=_FOLDER / "tiny" / "calibration.json",
    ),
    "flux": ModelSpec(
        name="flux",
        architecture="flux",
        base="black-forest-labs/FLUX.1-dev",
        adapter="ymyy307/ArcFlow/arcflow-flux-2steps",
        limits=_limits(4, (256, 1024, 1536), (512, 512, 512), multiple=16),
    ),
    "qwen": ModelSpec(
        name="qwen",
        architecture="qwen",
        base="Qwen/Qwen-Image",
        adapter="ymyy307/ArcFlow/arcflow-qwen-2steps",
        limits=_limits(4, (256, 1328, 1664), (1, 128, 512), multiple=16),
    ),
}
"""By the name that users type."""


def choose(model: str) -> ModelSpec:
    """The model of that name. Raises ExportError, which lists what is allowed."""
    if model not in MODELS:
        raise ExportError(f"--model {model} cannot be built; allowed: {', '.join(MODELS)}")
    return MODELS[model]


def choose_precision(name: str) -> Precision:
    """The precision of that name. Raises ExportError, which lists what is allowed."""
    try:
        return Precision(name)
    except ValueError as error:
        raise ExportError(f"--precision {name} is unknown; allowed: {', '.join(Precision)}") from error
