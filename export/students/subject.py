"""The student that is calibrated or analysed, and the prompts it generates, opened from what users type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from export import architectures
from export.errors import CalibrationError, ExportError
from export.networks.base import BACKBONE
from export.sources.models import ModelSpec

if TYPE_CHECKING:
    import torch

    from arcflow.students import Coverage
    from export.networks.base import Network
    from export.students.conditions import Prompted, Report
    from export.weights.lora import StyleLora
    from export.weights.merge import MergedStudent

PROMPTS = Path(__file__).parents[1] / "prompts"
"""The prompt lists that come with the project: ``calibration.txt``, and one for a model that needs its own."""

FLOAT32_BELOW = 1_000_000_000
"""Parameters: a student with fewer runs in float32 unless told otherwise, a larger one in bfloat16."""


@dataclass(frozen=True)
class Subject:
    """A student whose sources fit together. base, adapter: folders; loras: merged in the same pass.

    The student's digests of base and adapter are UNREAD where only headers were looked at.
    """

    spec: ModelSpec
    base: Path
    adapter: Path
    loras: tuple[StyleLora, ...]
    student: MergedStudent

    @property
    def architecture(self) -> ModuleType:
        """The module of the model's architecture."""
        return architectures.choose(self.spec.architecture)

    def network(self, name: str) -> Network:
        """One of the architecture's networks. Raises ExportError, WeightsError."""
        network: Network = self.architecture.network(name, self.base, self.student, self.adapter, self.loras)
        return network

    def digested(self) -> Subject:
        """The same with base and adapter digested: tens of gigabytes are read."""
        from export.weights.parents import Parents
        from foundation.files import sha256_tree

        transformer = self.base / self.architecture.FOLDERS[BACKBONE]
        parents = Parents(sha256_tree(transformer), sha256_tree(self.adapter), self.student.parents.loras)
        return replace(self, student=replace(self.student, parents=parents))

    def sigmas(self) -> tuple[float, ...]:
        """The student's own noise levels, 1 first and 0 last."""
        from arcflow.schedule import sigmas

        own = self.student.policy
        return sigmas(own.nfe, own.shift, own.final_step_ratio)

    def default_dtype(self) -> torch.dtype:
        """float32 for a small student, else bfloat16."""
        import math

        import torch

        count = sum(math.prod(info.shape) for info in self.student.weights.values())
        return torch.float32 if count < FLOAT32_BELOW else torch.bfloat16

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of image tokens of an image. Raises ExportError where they do not fill the size."""
        latent = self.architecture.latent(self.base)
        side = latent.vae_factor * latent.patch
        if min(width, height) < side or width % side or height % side:
            raise ExportError(f"the size {width}x{height} is not allowed: both sides must be multiples of {side}")
        return height // side, width // side

    def prompted(
        self, prompts: Sequence[str], width: int, height: int, dtype: torch.dtype, device: torch.device,
        report: Report | None = None,
    ) -> Prompted:  # fmt: skip
        """Encode prompts for images of that size. Raises ExportError, WeightsError."""
        from export.students.conditions import Prompted, encode_prompts

        rows, columns = self.grid(width, height)
        tokenizers = self.architecture.tokenizers(self.base, self.spec.limits)
        encodings = encode_prompts(self.architecture, self.network, tokenizers, prompts, dtype, device, report)
        policy = self.student.policy
        return Prompted(self.architecture.NAME, encodings, policy.guidance, policy.conditioning_dtype, rows, columns)


def open_subject(
    spec: ModelSpec, base: str | None = None, adapter: str | None = None, loras: Sequence[str] = ()
) -> Subject:
    """Inspect and digest a student. Arguments and errors are those of :func:`inspect_subject`."""
    return inspect_subject(spec, base, adapter, loras).digested()


def inspect_subject(
    spec: ModelSpec, base: str | None = None, adapter: str | None = None, loras: Sequence[str] = (),
    coverage: Coverage = "whole",
) -> Subject:  # fmt: skip
    """Open a student from what users type, by its headers; hub ids become folders. Nothing large is read.

    base, adapter: None for the model's own; loras: ``PATH[:SCALE]`` each; coverage: which LoRA pairs the adapter must
    have. Raises an ArcFlowError where the parts do not fit.
    """
    from export.sources.hub import resolve_adapter, resolve_base
    from export.weights.lora import parse_lora
    from export.weights.merge import merged_student, plan_merge
    from export.weights.parents import UNREAD

    folder = resolve_base(base or spec.base, spec.architecture)
    adapter_folder = resolve_adapter(adapter or spec.adapter)
    styles = tuple(parse_lora(text, spec.architecture) for text in loras)
    transformer = folder / architectures.choose(spec.architecture).FOLDERS[BACKBONE]
    plan = plan_merge(transformer, adapter_folder, styles, coverage)
    if plan.architecture != spec.architecture:
        raise ExportError(
            f"{adapter_folder} is an adapter for {plan.architecture}, --model {spec.name} is of architecture "
            f"{spec.architecture}; choose another --model or --adapter"
        )
    return Subject(spec, folder, adapter_folder, styles, merged_student(plan, UNREAD, UNREAD))


def default_prompts(model: str) -> Path:
    """The shipped list of prompts for that model."""
    own = PROMPTS / f"{model}.txt"
    return own if own.is_file() else PROMPTS / "calibration.txt"


def read_prompts(path: Path, number: int | None = None) -> tuple[str, ...]:
    """Prompts of a UTF-8 text file, one a line; empty lines and lines that begin with ``#`` are left out.

    number: the first so many of them. Raises CalibrationError where there are none, or fewer.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"cannot read the prompts {path}: {error}; give a UTF-8 text file, one a line"
        ) from error
    prompts = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if number is not None and not 0 < number <= len(prompts):
        raise CalibrationError(f"--num is {number}, {path} has {len(prompts)} prompts; choose 1 to {len(prompts)}")
    if not prompts:
        raise CalibrationError(f"{path} has no prompts; write one a line")
    return prompts[:number]
