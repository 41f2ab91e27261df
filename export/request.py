"""What is to be built, and whether its sources fit together: all that can be known before the work starts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from engines.manifest import ONNX_TARGETS
from export.architectures import seam
from export.configs import read_json
from export.errors import ExportError
from export.models import ModelSpec
from export.places import check_out
from export.precision import CPU, Precision, compute_dtype
from export.tokenizer_files import TokenizerFile

if TYPE_CHECKING:
    from engines.manifest import Latent, Limits
    from export.calibration import Calibration
    from export.lora import StyleLora
    from export.merge import MergedStudent, MergePlan
    from export.tensorrt.profiles import Shapes
    from export.tensorrt.targets import Target

BACKBONE = "backbone"
"""The network that an adapter is merged into, and that FP8 quantises."""


class Attention(StrEnum):
    """What attention multiplies in under fp8: the type that the rest of the backbone computes in, or FP8."""

    MODEL = "model"
    FP8 = "fp8"


@dataclass(frozen=True)
class Request:
    """What to build, from what, and where to.

    base, adapter: folders; loras: merged in the same pass; shapes: what the bundle takes; calibration: a file of
    activation scales (fp8 only); keep_high: patterns of layers that fp8 leaves out; attention: what fp8 does to it;
    only: the networks to build, all where it is empty; gate: the greatest relative L2 error that fp8 may cause at the
    end of the path; workdir: keeps the stages' results between runs.
    """

    spec: ModelSpec
    precision: Precision
    target: str
    base: Path
    adapter: Path
    out: Path
    workdir: Path
    shapes: Shapes
    loras: tuple[StyleLora, ...] = ()
    calibration: Path | None = None
    keep_high: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    attention: Attention = Attention.MODEL
    gate: float = 0.03

    @property
    def seam(self) -> ModuleType:
        """The module of the model's architecture."""
        return seam(self.spec.architecture)

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks to build, in the architecture's order."""
        names: tuple[str, ...] = self.seam.NETWORKS
        return tuple(name for name in names if name in (self.only or names))

    @property
    def needs_plans(self) -> bool:
        """Whether the target is a GPU's, whose bundle holds plans."""
        return self.target not in ONNX_TARGETS


@dataclass(frozen=True)
class Headers:
    """A request whose inputs were found to fit together, from their headers alone.

    limits, latent: of the bundle; target: None but for plans.
    """

    request: Request
    plan: MergePlan
    tokenizers: Mapping[str, TokenizerFile]
    limits: Limits
    latent: Latent
    target: Target | None

    @property
    def keep_high(self) -> tuple[str, ...]:
        """Patterns of the layers that fp8 leaves alone: the model's own, then those asked for."""
        return (*self.request.spec.keep_high, *self.request.keep_high)


@dataclass(frozen=True)
class Sources(Headers):
    """Inputs that were digested as well: all that a build depends on.

    digests: of each folder that is read, by name; calibration: None but for fp8.
    """

    student: MergedStudent
    digests: Mapping[str, str]
    calibration: Calibration | None

    @property
    def parents(self) -> dict[str, str]:
        """The digests that the bundle's manifest names: adapter, LoRAs, base (all folders of it), student."""
        base = "".join(f"{name}\0{digest}\n" for name, digest in sorted(self.digests.items()) if name != "adapter")
        parents = {
            "adapter": self.digests["adapter"],
            "base": hashlib.sha256(base.encode()).hexdigest(),
            "student": self.student.digest,
        }
        for number, lora in enumerate(self.request.loras, 1):
            parents[f"lora{number}"] = lora.digest
        return parents


Report = Callable[[str, int, int], None]
"""Told (what is being read, bytes done, bytes in all)."""


def check_request(request: Request) -> Target | None:
    """Check what was asked for, before any source is looked for; returns the target of plans.

    Raises ExportError: what cannot be built so, and what is allowed.
    """
    from export.tensorrt.targets import check_target

    check_out(request.out)
    if not 0.0 < request.gate < math.inf:
        raise ExportError(f"--gate {request.gate} is no limit: it must be a number above 0, such as 0.03 for 3 %")
    unknown = set(request.only) - set(request.seam.NETWORKS)
    if unknown:
        raise ExportError(f"--only {', '.join(sorted(unknown))}: the networks are {', '.join(request.seam.NETWORKS)}")
    target = check_target(request.target, request.precision) if request.needs_plans else None
    for name in request.networks:
        compute_dtype(name, request.precision, request.target)
    _check_fp8(request)
    return target


def inspect_sources(request: Request) -> Headers:
    """Check all that headers tell, before anything large is read. Raises an ArcFlowError that says what to do."""
    from export.merge import plan_merge
    from export.tensorrt.profiles import narrowed
    from export.weights import open_folder

    target = check_request(request)
    base = request.base
    if not (base / "model_index.json").is_file():
        raise ExportError(f"no base pipeline at {base}: model_index.json is missing; give --base a pipeline folder")
    plan = plan_merge(base / request.seam.FOLDERS[BACKBONE], request.adapter, request.loras)
    if plan.architecture != request.spec.architecture:
        raise ExportError(
            f"{request.adapter} is an adapter for {plan.architecture}, --model {request.spec.name} is of architecture "
            f"{request.spec.architecture}; choose another --model or --adapter"
        )
    limits = narrowed(request.spec.limits, request.shapes)
    latent: Latent = request.seam.latent(base)
    tokenizers = {} if request.only else request.seam.tokenizers(base, limits)
    for name in request.networks:
        folder = base / request.seam.FOLDERS[name]
        read_json(folder / "config.json")
        open_folder(folder)
    return Headers(request, plan, tokenizers, limits, latent, target)


def read_sources(headers: Headers, report: Report | None = None) -> Sources:
    """Digest the sources: read once, and remembered in the work folder. Raises an ArcFlowError.

    For fp8 the calibration must be of this very student.
    """
    from export.merge import merged_student

    request = headers.request
    digests = _digests(request, report)
    student = merged_student(headers.plan, digests[request.seam.FOLDERS[BACKBONE]], digests["adapter"])
    calibration = None
    if request.precision is Precision.FP8 and request.calibration is not None:
        from export.calibration import read_calibration

        calibration = read_calibration(request.calibration, student.digest)
    return Sources(**vars(headers), student=student, digests=digests, calibration=calibration)


def _digests(request: Request, report: Report | None) -> dict[str, str]:
    from export.digests import digest_tree

    names = (*request.networks, BACKBONE)
    folders = {request.seam.FOLDERS[name]: request.base / request.seam.FOLDERS[name] for name in names}
    folders["adapter"] = request.adapter
    cache = request.workdir / "digests.json"
    return {
        name: digest_tree(folder, cache, None if report is None else partial(report, name))
        for name, folder in folders.items()
    }


def _check_fp8(request: Request) -> None:
    """Refuse fp8 without scales, naming the command that makes them, and fp8's options without fp8."""
    if request.precision is not Precision.FP8:
        if request.calibration is not None or request.keep_high or request.attention is Attention.FP8:
            raise ExportError(
                f"--calibration, --keep-high and --attention are for --precision fp8, not for {request.precision}"
            )
    elif request.attention is Attention.FP8 and request.target == CPU:
        raise ExportError("--attention fp8 is for GPUs: choose another --target than cpu")
    elif request.calibration is None:
        raise ExportError(
            "--precision fp8 needs the scales of this student's activations; to measure them, run: "
            f"python -m export.calibrate --model {request.spec.name} --out calibration.json   "
            "and build with --calibration calibration.json"
        )
