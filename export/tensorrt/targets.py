"""Targets: which GPUs a plan is built for, what they can compute in, and which flavours of TensorRT serve them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.checks import capabilities
from engines.schema import ONNX_TARGETS
from engines.tensorrt import DATA_CENTRE as DATA_CENTRE
from engines.tensorrt import RTX as RTX
from export.errors import EngineError
from export.precision import Precision


@dataclass(frozen=True)
class Target:
    """GPUs that a plan is built for. capabilities: theirs, sorted ("sm120"); flavours: those that can build for all."""

    name: str
    capabilities: tuple[str, ...]
    flavours: tuple[str, ...]

    @property
    def least(self) -> int:
        """The least of the compute capabilities, as a number (89 for sm89)."""
        return min(int(capability.removeprefix("sm")) for capability in self.capabilities)


_EITHER = (RTX, DATA_CENTRE)

TARGETS: Mapping[str, Target] = {
    name: Target(name, capabilities(name), flavours)
    for name, flavours in {
        "sm80": _EITHER,
        "sm86": _EITHER,
        "sm89": _EITHER,
        "sm90": (DATA_CENTRE,),
        "sm100": (DATA_CENTRE,),
        "sm120": _EITHER,
        "rtx": (RTX,),
    }.items()
}
"""By the name that users type. TensorRT for RTX knows no sm90 and sm100; it alone makes one plan for several GPUs."""

_LEAST: Mapping[Precision, int] = {Precision.FP32: 75, Precision.FP16: 75, Precision.BF16: 80, Precision.FP8: 89}
"""The first compute capability whose matrix units take a precision."""


def choose_target(name: str) -> Target:
    """The target of that name. Raises EngineError, which lists what is allowed."""
    if name not in TARGETS:
        hint = f"{name} runs ONNX files and needs no plan; " if name in ONNX_TARGETS else ""
        raise EngineError(f"--target {name}: no plan can be built for it; {hint}allowed: {', '.join(TARGETS)}")
    return TARGETS[name]


def check_target(name: str, precision: Precision | str) -> Target:
    """The target of that name, if its GPUs compute in ``precision``. Looks at nothing but the table.

    Raises EngineError, which lists the targets or the precisions that are possible.
    """
    target = choose_target(name)
    precision = Precision(precision)
    if target.least < _LEAST[precision]:
        possible = [other.name for other in TARGETS.values() if other.least >= _LEAST[precision]]
        instead = [str(p) for p in Precision if target.least >= _LEAST[p]]
        raise EngineError(
            f"--target {name} cannot compute in {precision}: that needs sm{_LEAST[precision]} or newer; "
            f"choose a target among {', '.join(possible)}, or a precision among {', '.join(instead)}"
        )
    return target
