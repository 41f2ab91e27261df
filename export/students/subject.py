"""The student that a command works on: opened from what users type, first by its headers, then digested."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from export import architectures
from export.errors import ExportError
from export.folders import digests
from export.networks.base import BACKBONE
from export.reporting import Report, silent
from export.sources.models import ModelSpec
from export.weights.parents import UNREAD

if TYPE_CHECKING:
    import torch

    from arcflow.students import Coverage
    from engines.schema import Latent
    from export.architectures.base import Architecture
    from export.networks.base import Network
    from export.students.prompts import Prompted
    from export.weights.merge import MergedStudent

FLOAT32_BELOW = 1_000_000_000
"""Parameters: a student with fewer runs in float32 unless told otherwise, a larger one in bfloat16."""

ADAPTER = "adapter"
"""The adapter's name among the digests of folders."""


@dataclass(frozen=True)
class Subject:
    """A student whose sources fit together, as far as headers tell.

    base: a pipeline's folder; digests: of the folders that were read, by name (``adapter``, else of ``base``); none
    and a student without digests until :meth:`digested`.
    """

    spec: ModelSpec
    base: Path
    student: MergedStudent
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """The recipe of the model's architecture."""
        return architectures.choose(self.spec.architecture)

    @property
    def latent(self) -> Latent:
        """Geometry of the latent and its normalisation."""
        return self.architecture.latent(self.base)

    @property
    def adapter(self) -> Path:
        """The adapter's folder."""
        return self.student.adapter

    def network(self, name: str) -> Network:
        """One of the architecture's networks. Raises ExportError, WeightsError."""
        return self.architecture.network(name, self.base, self.student)

    @property
    def whole(self) -> Network:
        """The whole student as one network, whatever networks it is cut into. Raises ExportError, WeightsError."""
        return self.architecture.student_network(self.base, self.student)

    def digested(
        self,
        cache: Path | None = None,
        networks: Iterable[str] = (),
        report: Report = silent,
        check: Callable[[MergedStudent], None] = lambda student: None,
    ) -> Subject:
        """The same with base and adapter digested, and the folders of ``networks``: what is not known yet is read.

        cache: keeps the digests (default: that of builds whose work folder is not named); check: may raise, given what
        is known of the student after each folder, the small ones first.
        """
        from arcflow.sources.hub import ADAPTER_FILES

        parts, student = self.architecture.parts, self.student
        found: dict[str, str] = {}
        for name in dict.fromkeys((ADAPTER, *(parts[network].folder for network in (BACKBONE, *networks)))):
            folder = self.adapter if name == ADAPTER else self.base / name
            # A model card beside an adapter may be edited, and is not downloaded with it.
            names = ADAPTER_FILES if name == ADAPTER else None
            found[name] = digests.digest_tree(folder, cache or digests.CACHE, partial(report, name), names)
            student = self.student.digested(found.get(parts[BACKBONE].folder, UNREAD), found[ADAPTER])
            check(student)
        return replace(self, student=student, digests=found)

    def plain(self) -> Subject:
        """The same without its style LoRAs."""
        from export.weights.merge import merge

        student = self.student
        if not student.loras:
            return self
        # Whether layers may lack their pair was decided when the student was opened.
        alone = merge(student.transformer, student.adapter, (), "partial")
        return replace(self, student=alone.digested(student.parents.base, student.parents.adapter))

    def sigmas(self) -> tuple[float, ...]:
        """The student's own noise levels, 1 first and 0 last."""
        from arcflow.schedule import sigmas

        own = self.student.policy
        return sigmas(own.nfe, own.shift, own.final_step_ratio)

    def default_dtype(self) -> torch.dtype:
        """float32 for a small student, else bfloat16."""
        import torch

        count = sum(math.prod(info.shape) for info in self.student.weights.values())
        return torch.float32 if count < FLOAT32_BELOW else torch.bfloat16

    def size(self, text: str | None) -> tuple[int, int]:
        """(width, height) in pixels of ``WIDTHxHEIGHT``, or the model's usual ones. Raises ExportError."""
        limits = self.spec.limits
        width, cross, height = (text or f"{limits.width.opt}x{limits.height.opt}").partition("x")
        if not (cross and width.isdecimal() and height.isdecimal()):
            raise ExportError(f"--size {text!r} is not understood; write WIDTHxHEIGHT in pixels, such as 1024x1024")
        self.grid(int(width), int(height))
        return int(width), int(height)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of image tokens of an image. Raises ExportError where they do not fill the size."""
        side = self.latent.vae_factor * self.latent.patch
        if min(width, height) < side or width % side or height % side:
            raise ExportError(f"the size {width}x{height} is not allowed: both sides must be multiples of {side}")
        return height // side, width // side

    def prompted(
        self, prompts: Sequence[str], width: int, height: int, dtype: torch.dtype, device: torch.device,
        report: Report = silent, stored: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> Prompted:  # fmt: skip
        """Encode prompts for images of that size. Raises ExportError, WeightsError.

        stored: by text encoder, weights that it is to have as FP8 leaves them.
        """
        from export.students.prompts import Prompted, encode

        rows, columns = self.grid(width, height)
        tokenizers = self.architecture.tokenizers(self.base, self.spec.limits)
        encodings = self.architecture.encodings(
            tokenizers,
            prompts,
            lambda name, inputs: encode(self.network(name), inputs, dtype, device, report, stored.get(name, ())),
        )
        policy = self.student.policy
        return Prompted(self.architecture, encodings, policy.guidance, policy.conditioning_dtype, rows, columns)


def open_subject(
    spec: ModelSpec, base: str | None = None, adapter: str | None = None, loras: Sequence[str] = (),
    coverage: Coverage = "whole",
) -> Subject:  # fmt: skip
    """Open a student from what users type, by its headers; hub ids become folders. Nothing large is read.

    base, adapter: None for the model's own; loras: ``PATH[:SCALE]`` each; coverage: which LoRA pairs the adapter must
    have. Raises an ArcFlowError where the parts do not fit.
    """
    from arcflow.sources.hub import resolve_adapter, resolve_base
    from export.weights.lora import parse_lora
    from export.weights.merge import merge

    architecture = architectures.choose(spec.architecture)
    folder = resolve_base(base or spec.base, architecture.folders)
    adapter_folder = resolve_adapter(adapter or spec.adapter)
    styles = [parse_lora(text, spec.architecture) for text in loras]
    if not (folder / "model_index.json").is_file():
        raise ExportError(f"no base pipeline at {folder}: model_index.json is missing; give --base a pipeline folder")
    student = merge(folder / architecture.parts[BACKBONE].folder, adapter_folder, styles, coverage)
    if student.architecture != spec.architecture:
        raise ExportError(
            f"{adapter_folder} is an adapter for {student.architecture}, --model {spec.name} is of architecture "
            f"{spec.architecture}; choose another --model or --adapter"
        )
    return Subject(spec, folder, student)
