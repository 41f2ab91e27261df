"""The student that is calibrated or analysed, and the prompts it paints, opened from what users type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from export.architectures import seam
from export.errors import CalibrationError, ExportError
from export.models import ModelSpec

if TYPE_CHECKING:
    import torch

    from export.conditions import Prompted, Report
    from export.lora import StyleLora
    from export.merge import MergedStudent
    from export.networks.base import Network

PROMPTS = Path(__file__).parent / "prompts"
"""The prompt lists that come with the project: ``calibration.txt``, and one for a model that needs its own."""

BACKBONE = "backbone"
SMALL = 1_000_000_000
"""Parameters: a student with fewer runs in float32 unless told otherwise, a larger one in bfloat16."""


@dataclass(frozen=True)
class Subject:
    """A student whose sources fit together. base, adapter: folders; loras: merged in the same pass."""

    spec: ModelSpec
    base: Path
    adapter: Path
    loras: tuple[StyleLora, ...]
    student: MergedStudent

    @property
    def seam(self) -> ModuleType:
        """The module of the model's architecture."""
        return seam(self.spec.architecture)

    def network(self, name: str) -> Network:
        """One of the architecture's networks. Raises ExportError, WeightsError."""
        network: Network = self.seam.network(name, self.base, self.student, self.adapter, self.loras)
        return network

    def sigmas(self) -> tuple[float, ...]:
        """The student's own noise levels, 1 first and 0 last."""
        from arcflow.schedule import sigmas
        from export.assemble import schedule

        own = schedule(self.student.policy)
        return sigmas(own.nfe, own.shift, own.final_step_ratio)

    def default_dtype(self) -> torch.dtype:
        """float32 for a small student, else bfloat16."""
        import math

        import torch

        count = sum(math.prod(info.shape) for info in self.student.weights.values())
        return torch.float32 if count < SMALL else torch.bfloat16

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of image tokens of a picture. Raises ExportError where they do not fill the size."""
        latent = self.seam.latent(self.base)
        side = latent.vae_factor * latent.patch
        if min(width, height) < side or width % side or height % side:
            raise ExportError(f"the size {width}x{height} is not allowed: both sides must be multiples of {side}")
        return height // side, width // side

    def prompted(
        self, prompts: Sequence[str], width: int, height: int, dtype: torch.dtype, device: torch.device,
        report: Report | None = None,
    ) -> Prompted:  # fmt: skip
        """Encode prompts for pictures of that size. Raises ExportError, WeightsError."""
        from export.conditions import Prompted, encode_prompts

        rows, columns = self.grid(width, height)
        tokenizers = self.seam.tokenizers(self.base, self.spec.limits)
        encodings = encode_prompts(self.seam, self.network, tokenizers, prompts, dtype, device, report)
        policy = self.student.policy
        return Prompted(self.seam.NAME, encodings, policy.guidance, policy.conditioning_dtype, rows, columns)


def open_subject(
    spec: ModelSpec, base: str | None = None, adapter: str | None = None, loras: Sequence[str] = (),
    report: Callable[[str], None] | None = None,
) -> Subject:  # fmt: skip
    """Open a student from what users type; hub ids become folders. base, adapter: None for the model's own.

    loras: ``PATH[:SCALE]`` each. report: told what is being read. Raises an ArcFlowError where the parts do not fit.
    """
    from export.hub import resolve_adapter, resolve_base
    from export.lora import parse_lora
    from export.merge import merged_student, plan_merge
    from foundation.files import sha256_tree

    folder = resolve_base(base or spec.base, spec.architecture)
    adapter_folder = resolve_adapter(adapter or spec.adapter)
    styles = tuple(parse_lora(text, spec.architecture) for text in loras)
    transformer = folder / seam(spec.architecture).FOLDERS[BACKBONE]
    plan = plan_merge(transformer, adapter_folder, styles)
    if plan.architecture != spec.architecture:
        raise ExportError(
            f"{adapter_folder} is an adapter for {plan.architecture}, --model {spec.name} is of architecture "
            f"{spec.architecture}; choose another --model or --adapter"
        )
    digests = []
    for source in (transformer, adapter_folder):
        if report is not None:
            report(f"reading {source}")
        digests.append(sha256_tree(source))
    return Subject(spec, folder, adapter_folder, styles, merged_student(plan, *digests))


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
