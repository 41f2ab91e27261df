"""What is to be built, and whether its sources fit together: all that can be known before the work starts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from engines.schema import ONNX_TARGETS
from export import architectures
from export.errors import CalibrationError, ExportError
from export.folders.places import check_out
from export.networks.base import BACKBONE
from export.precision import CPU, Precision, compute_dtype
from export.sources.configs import read_json
from export.sources.models import ModelSpec
from export.sources.options import command
from export.sources.tokenizers import TokenizerFile

if TYPE_CHECKING:
    from arcflow.students import Coverage
    from engines.schema import Latent, Limits
    from export.fp8.calibration import Calibration
    from export.tensorrt.profiles import Shapes
    from export.tensorrt.targets import Target
    from export.weights.lora import StyleLora
    from export.weights.merge import MergedStudent, MergePlan


class Attention(StrEnum):
    """What attention multiplies in under fp8: the type that the rest of the backbone computes in, or FP8."""

    MODEL = "model"
    FP8 = "fp8"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to build and where to, its sources still to be found.

    shapes: what the bundle takes; calibration: a file of activation scales (fp8 only); keep_high: patterns of layers
    that fp8 leaves out; attention: what fp8 does to it; only: the networks to build, all where it is empty; gate: the
    greatest relative L2 error that fp8 may cause at the end of the path; workdir: keeps the stages' results between
    runs; coverage: which LoRA pairs the adapter must have; typed: the options that name the sources as the user gave
    them, for messages.
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
    gate: float = 0.03
    coverage: Coverage = "whole"
    typed: tuple[str, ...] = ()

    @property
    def architecture(self) -> ModuleType:
        """The module of the model's architecture."""
        return architectures.choose(self.spec.architecture)

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks to build, in the architecture's order."""
        names: tuple[str, ...] = self.architecture.NETWORKS
        return tuple(name for name in names if name in (self.only or names))

    @property
    def needs_plans(self) -> bool:
        """Whether the target is a GPU's, whose bundle holds plans."""
        return self.target not in ONNX_TARGETS

    @property
    def calibrate(self) -> str:
        """The command that measures the scales of this student."""
        return command("calibrate", [*self.options, "--out", "calibration.json"])

    @property
    def options(self) -> tuple[str, ...]:
        """The options that name the sources in a command."""
        return self.typed or ("--model", self.spec.name)


@dataclass(frozen=True, kw_only=True)
class Request(Wanted):
    """What to build, and from what. base, adapter: folders that are here; loras: merged in the same pass."""

    base: Path
    adapter: Path
    loras: tuple[StyleLora, ...] = ()


@dataclass(frozen=True)
class Headers:
    """A request whose inputs were found to fit together, from their headers alone.

    limits, latent: of the bundle; target: None but for plans; calibration: None but for fp8.
    """

    request: Request
    plan: MergePlan
    tokenizers: Mapping[str, TokenizerFile]
    limits: Limits
    latent: Latent
    target: Target | None
    calibration: Calibration | None

    @property
    def keep_high(self) -> tuple[str, ...]:
        """Patterns of the layers that fp8 leaves alone: the model's own, then those asked for."""
        return (*self.request.spec.keep_high, *self.request.keep_high)

    def student_unread(self) -> MergedStudent:
        """The student as far as headers tell: without its digests."""
        from export.weights.merge import merged_student
        from export.weights.parents import UNREAD

        return merged_student(self.plan, UNREAD, UNREAD)

    def fp8_layers(self) -> frozenset[str]:
        """The backbone's weights that fp8 takes, by state-dict name; none in another precision. Raises ExportError."""
        if self.request.precision is not Precision.FP8:
            return frozenset()
        from export.fp8.policy import select_layers

        request, student = self.request, self.student_unread()
        network = request.architecture.network(BACKBONE, request.base, student, request.adapter)
        return frozenset(select_layers(student.weights, network.fp8_layers, self.keep_high))


@dataclass(frozen=True)
class Sources(Headers):
    """Inputs that were digested as well: all that a build depends on.

    digests: of each folder that is read, by name.
    """

    student: MergedStudent
    digests: Mapping[str, str]

    @property
    def scales_of_plain(self) -> bool:
        """Whether fp8's scales were measured on the student without its style LoRAs."""
        return self.calibration is not None and self.calibration.student != self.student.digest

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


def check_request(request: Wanted) -> Target | None:
    """Check what was asked for, before any source is looked for; returns the target of plans.

    Raises ExportError: what cannot be built so, and what is allowed.
    """
    from export.tensorrt.targets import check_target

    check_out(request.out)
    if not 0.0 < request.gate < math.inf:
        raise ExportError(f"--gate {request.gate} is no limit: it must be a number above 0, such as 0.03 for 3 %")
    unknown = set(request.only) - set(request.architecture.NETWORKS)
    if unknown:
        known = ", ".join(request.architecture.NETWORKS)
        raise ExportError(f"--only {', '.join(sorted(unknown))}: the networks are {known}")
    target = check_target(request.target, request.precision) if request.needs_plans else None
    for name in request.networks:
        compute_dtype(name, request.precision, request.target)
    _check_fp8(request)
    return target


def inspect_sources(request: Request) -> Headers:
    """Check all that headers tell, before anything large is read. Raises an ArcFlowError that says what to do."""
    from export.tensorrt.profiles import narrowed
    from export.weights.files import open_folder
    from export.weights.merge import plan_merge

    target = check_request(request)
    base = request.base
    if not (base / "model_index.json").is_file():
        raise ExportError(f"no base pipeline at {base}: model_index.json is missing; give --base a pipeline folder")
    plan = plan_merge(base / request.architecture.FOLDERS[BACKBONE], request.adapter, request.loras, request.coverage)
    if plan.architecture != request.spec.architecture:
        raise ExportError(
            f"{request.adapter} is an adapter for {plan.architecture}, --model {request.spec.name} is of architecture "
            f"{request.spec.architecture}; choose another --model or --adapter"
        )
    limits = narrowed(request.spec.limits, request.shapes)
    latent: Latent = request.architecture.latent(base)
    tokenizers = {} if request.only else request.architecture.tokenizers(base, limits)
    for name in request.networks:
        folder = base / request.architecture.FOLDERS[name]
        read_json(folder / "config.json")
        open_folder(folder)
    headers = Headers(request, plan, tokenizers, limits, latent, target, None)
    return replace(headers, calibration=_calibration(headers))


def read_sources(headers: Headers, report: Report | None = None) -> Sources:
    """Digest the sources, the small ones first: read once, and remembered in the work folder. Raises an ArcFlowError.

    For fp8 the calibration must be of this student, or of the same without its LoRAs.
    """
    from export.folders.digests import digest_tree
    from export.weights.merge import merged_student
    from export.weights.parents import UNREAD

    request, architecture = headers.request, headers.request.architecture
    names = ("adapter", *(architecture.FOLDERS[name] for name in (BACKBONE, *request.networks)))
    digests: dict[str, str] = {}
    for name in dict.fromkeys(names):
        folder = request.adapter if name == "adapter" else request.base / name
        told = None if report is None else partial(report, name)
        digests[name] = digest_tree(folder, request.workdir / "digests.json", told)
        base = digests.get(architecture.FOLDERS[BACKBONE], UNREAD)
        student = merged_student(headers.plan, base, digests["adapter"])
        _check_scales(headers, student)
    return Sources(**vars(headers), student=student, digests=digests)


def _calibration(headers: Headers) -> Calibration | None:
    """The calibration of an fp8 build, which has all layers and, as far as headers tell, is of this student."""
    from export.fp8.calibration import read_calibration

    request = headers.request
    if request.precision is not Precision.FP8 or request.calibration is None:
        return None
    layers = sorted(headers.fp8_layers()) if BACKBONE in request.networks else []
    calibration = read_calibration(request.calibration, f"measure them: {request.calibrate}")
    found = replace(headers, calibration=calibration)
    _check_scales(found, found.student_unread())
    calibration.input_scales(layers, f"measure them: {request.calibrate}")
    if request.attention is Attention.FP8 and not calibration.attention:
        raise CalibrationError(
            f"{request.calibration} has no bounds of attention, which --attention fp8 needs; measure them: "
            f"{request.calibrate}"
        )
    return calibration


def _check_scales(headers: Headers, student: MergedStudent) -> None:
    from export.fp8.calibration import check_student

    request = headers.request
    if headers.calibration is not None and request.calibration is not None:
        how = f"measure them: {request.calibrate}"
        check_student(headers.calibration, student.parents, request.calibration, how)


def _check_fp8(request: Wanted) -> None:
    """Reject fp8 without scales, naming the command that makes them, and fp8's options without fp8."""
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
            f"{request.calibrate}   and build with --calibration calibration.json"
        )
