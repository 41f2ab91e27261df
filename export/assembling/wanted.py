"""What is to be built, as the user asks for it, and whether that can be built at all. Its sources come later."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from engines.schema import ONNX_TARGETS
from export import architectures
from export.errors import ExportError
from export.folders.places import check_out
from export.precision import CPU, Precision, compute_dtype
from export.sources.models import ModelSpec
from export.sources.options import command

if TYPE_CHECKING:
    from export.architectures.base import Architecture
    from export.tensorrt.profiles import Shapes


MAX_NFE = 64
"""The most evaluations that any bundle allows."""


class Attention(StrEnum):
    """What attention multiplies in under fp8: the type that the rest of the backbone computes in, or FP8."""

    MODEL = "model"
    FP8 = "fp8"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to build and where to.

    shapes: what the bundle takes; calibration: a file of activation scales (fp8 only), None to measure them; keep_high:
    patterns of layers that fp8 leaves out; attention: what fp8 does to it; max_nfe: the most evaluations that an image
    may have, None for the architecture's; only: the networks to build, all where it is empty; gate: the greatest
    relative L2 error that fp8 may cause at the end of the path; workdir: keeps the stages' results between runs; typed:
    the options that name the sources as the user gave them, for messages.
    """

    spec: ModelSpec
    precision: Precision
    target: str
    out: Path
    workdir: Path
    shapes: Shapes
    calibration: Path | None = None
    keep_high: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    attention: Attention = Attention.MODEL
    max_nfe: int | None = None
    gate: float = 0.03
    typed: tuple[str, ...] = ()

    @property
    def architecture(self) -> Architecture:
        """The recipe of the model's architecture."""
        return architectures.choose(self.spec.architecture)

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks to build, in the architecture's order."""
        return tuple(name for name in self.architecture.parts if not self.only or name in self.only)

    @property
    def most_nfe(self) -> int:
        """The most evaluations that an image may have."""
        return self.max_nfe or self.architecture.max_nfe

    @property
    def needs_plans(self) -> bool:
        """Whether the target is a GPU's, whose bundle holds plans."""
        return self.target not in ONNX_TARGETS

    @property
    def options(self) -> tuple[str, ...]:
        """The options that name the sources in a command."""
        return self.typed or ("--model", self.spec.name)

    @property
    def calibrate(self) -> str:
        """The command that measures the scales of this student."""
        return command("calibrate", [*self.options, "--out", "calibration.json"])

    def check(self) -> None:
        """Raise ExportError where this cannot be built: why, and what is allowed."""
        from export.tensorrt.targets import check_target

        check_out(self.out)
        if not 0.0 < self.gate < math.inf:
            raise ExportError(f"--gate {self.gate} is no limit: it must be a number above 0, such as 0.03 for 3 %")
        if self.max_nfe is not None and not 1 <= self.max_nfe <= MAX_NFE:
            raise ExportError(f"--max-nfe {self.max_nfe} is not possible; allowed: 1 to {MAX_NFE}")
        unknown = set(self.only) - set(self.architecture.parts)
        if unknown:
            known = ", ".join(self.architecture.parts)
            raise ExportError(f"--only {', '.join(sorted(unknown))}: the networks are {known}")
        if self.needs_plans:
            check_target(self.target, self.precision)
        for name in self.networks:
            compute_dtype(name, self.precision, self.target)
        self._check_fp8()

    def _check_fp8(self) -> None:
        """Reject fp8's options without fp8."""
        if self.precision is not Precision.FP8:
            if self.calibration is not None or self.keep_high or self.attention is Attention.FP8:
                raise ExportError(
                    f"--calibration, --keep-high and --attention are for --precision fp8, not for {self.precision}"
                )
        elif self.attention is Attention.FP8 and self.target == CPU:
            raise ExportError("--attention fp8 is for GPUs: choose another --target than cpu")
