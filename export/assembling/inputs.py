"""What a build is made from, found to fit together: the student, and for each network all that its stages ask.

First from headers alone; then digested.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engines.schema import Gate, Limits
from export.assembling.wanted import Attention, Wanted
from export.errors import CalibrationError, ExportError
from export.fp8.calibration import Calibration, check_student, read_calibration
from export.fp8.policy import own_patterns, select_layers, select_weights, weight_of
from export.networks.base import Network
from export.precision import CPU, Precision, compute_dtype, opset, stored_dtype
from export.reporting import Report, silent
from export.sources.configs import read_json
from export.sources.tokenizers import TokenizerFile
from export.students.subject import ADAPTER, Subject
from export.weights.parents import UNREAD

if TYPE_CHECKING:
    from export.weights.merge import MergedStudent

ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a value, by what a network computes in or is stored in."""


@dataclass(frozen=True)
class Fp8:
    """How a network is quantised. keep_high: patterns of the layers that fp8 leaves alone: the model's, the user's."""

    calibration: Calibration
    keep_high: tuple[str, ...]
    attention: Attention


@dataclass(frozen=True)
class Task:
    """One network to build, and how.

    compute: the floating type that it computes in; stored_in: the one that its matrices are stored in, those in FP8
    aside; precision: the bundle's; inline: whether weights go inside the graph where they fit; source: digest of its
    weights (UNREAD: not known yet); quantised: weights that fp8 takes by state-dict name, and fp8 how, None where it
    takes none; stored: weights that are FP8 in the file and multiplied in ``compute``, patterns of those that are not.
    """

    network: Network
    compute: str
    stored_in: str
    precision: Precision
    opset: int
    inline: bool
    source: str = UNREAD
    quantised: frozenset[str] = frozenset()
    stored: frozenset[str] = frozenset()
    kept: tuple[str, ...] = ()
    fp8: Fp8 | None = None

    @property
    def name(self) -> str:
        """The network's."""
        return self.network.name

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(math.prod(info.shape) for info in self.network.weights.values())

    @property
    def bytes_fp8(self) -> int:
        """Bytes of the weights that are stored in FP8."""
        return sum(math.prod(self.network.weights[name].shape) for name in (*self.quantised, *self.stored))

    @property
    def bytes_high(self) -> int:
        """Bytes of all other weights, as they are stored, about."""
        return (self.parameters - self.bytes_fp8) * ITEMSIZE[self.stored_in]


@dataclass(frozen=True)
class Build:
    """All that a build depends on. limits: of the bundle; tokenizers: by network, none where no bundle is built; gate:
    what FP8 was found to change, once that is known."""

    wanted: Wanted
    subject: Subject
    tasks: tuple[Task, ...]
    limits: Limits
    tokenizers: Mapping[str, TokenizerFile]
    fp8: Fp8 | None = None
    gate: Gate | None = None

    @property
    def lacks_scales(self) -> bool:
        """Whether a network takes FP8 scales that no calibration was given for."""
        return self.fp8 is None and any(task.quantised for task in self.tasks)

    @property
    def scales_of_plain(self) -> bool:
        """Whether fp8's scales were measured on the student without its style LoRAs."""
        return self.fp8 is not None and self.fp8.calibration.student != self.subject.student.digest

    @property
    def parents(self) -> dict[str, str]:
        """The digests that the bundle's manifest names: adapter, LoRAs, base (all folders of it), student."""
        digests, student = self.subject.digests, self.subject.student
        base = "".join(f"{name}\0{digest}\n" for name, digest in sorted(digests.items()) if name != ADAPTER)
        loras = {f"lora{number}": lora.digest for number, lora in enumerate(student.loras, 1)}
        base_digest = hashlib.sha256(base.encode()).hexdigest()
        return {"adapter": digests[ADAPTER], "base": base_digest, "student": student.digest, **loras}

    def digested(self, report: Report = silent) -> Build:
        """The same with its sources digested: read once, and remembered in the work folder. Raises an ArcFlowError.

        For fp8 the calibration must be of this student, or of the same without its LoRAs.
        """
        wanted = self.wanted
        subject = self.subject.digested(wanted.workdir / "digests.json", wanted.networks, report, self._check_scales)
        parts = wanted.architecture.parts

        def source(name: str) -> str:
            return subject.student.digest if parts[name].merged else subject.digests[parts[name].folder]

        return replace(self, subject=subject, tasks=tuple(replace(t, source=source(t.name)) for t in self.tasks))

    def _check_scales(self, student: MergedStudent) -> None:
        path = self.wanted.calibration
        if self.fp8 is not None and path is not None:
            check_student(self.fp8.calibration, student.parents, path, f"measure them: {self.wanted.calibrate}")


def stored_weights(wanted: Wanted, network: Network, names: Iterable[str] | None = None) -> frozenset[str]:
    """The weights of a network that fp8 only stores so. names: of all of them, None for what their file calls them.
    Raises ExportError where a pattern of those that stay high matches none of them."""
    if wanted.precision is not Precision.FP8:
        return frozenset()
    own = () if network.fp8_layers else own_patterns(network.name, (*wanted.spec.keep_high, *wanted.keep_high))
    return frozenset(select_weights(network.weights if names is None else names, network.fp8_weights, own))


def keeping_high(build: Build, layers: Sequence[str]) -> Build:
    """The same with these layers of its backbone left alone by fp8 as well."""
    if build.fp8 is None or not layers:
        return build
    fp8, kept = replace(build.fp8, keep_high=(*build.fp8.keep_high, *layers)), frozenset(map(weight_of, layers))
    tasks = (replace(task, fp8=fp8, quantised=task.quantised - kept) if task.fp8 else task for task in build.tasks)
    return replace(build, fp8=fp8, tasks=tuple(tasks))


def inspect(wanted: Wanted, subject: Subject) -> Build:
    """Check all that headers tell, before anything large is read. Raises an ArcFlowError that says what to do."""
    from export.tensorrt.profiles import narrowed

    wanted.check()
    nfe = subject.student.policy.nfe
    if nfe > wanted.most_nfe:
        raise ExportError(
            f"--max-nfe {wanted.most_nfe} is below the student's own {nfe} evaluations; give {nfe} or more"
        )
    limits = narrowed(wanted.spec.limits, wanted.shapes)
    architecture, base = wanted.architecture, subject.base
    tokenizers = {} if wanted.only else architecture.tokenizers(base, limits)
    keep_high = (*wanted.spec.keep_high, *wanted.keep_high)
    in_fp8 = wanted.precision is Precision.FP8
    unnamed = tuple(p for p in keep_high if p.partition(".")[0] not in architecture.parts)
    of_layers: tuple[str, ...] = ()
    tasks = []
    for name in wanted.networks:
        read_json(base / architecture.parts[name].folder / "config.json")
        network = architecture.network(name, base, subject.student, wanted.max_nfe)
        layers = network.fp8_layers if in_fp8 else ()
        own = own_patterns(name, keep_high)
        if layers:
            of_layers, own = (*unnamed, *own), ()
        tasks.append(
            Task(
                network=network,
                compute=compute_dtype(name, wanted.precision, wanted.target),
                stored_in=stored_dtype(name, wanted.precision, wanted.target),
                precision=wanted.precision,
                opset=opset(wanted.precision, wanted.target),
                inline=wanted.target == CPU,
                quantised=frozenset(select_layers(network.weights, layers, of_layers) if layers else ()),
                stored=stored_weights(wanted, network),
                kept=own,
            )
        )
    build = Build(wanted, subject, tuple(tasks), limits, tokenizers)
    if wanted.precision is not Precision.FP8 or wanted.calibration is None:
        return build
    how = f"measure them: {wanted.calibrate}"
    calibration = read_calibration(wanted.calibration, how)
    fp8 = Fp8(calibration, of_layers, wanted.attention)
    build = replace(build, fp8=fp8, tasks=tuple(replace(t, fp8=fp8) if t.quantised else t for t in build.tasks))
    build._check_scales(subject.student)
    calibration.input_scales(sorted(name for task in build.tasks for name in task.quantised), how)
    if wanted.attention is Attention.FP8 and not calibration.attention:
        raise CalibrationError(f"{wanted.calibration} has no bounds of attention, which --attention fp8 needs; {how}")
    return build
