"""The scales that an fp8 build measures for itself where no calibration is given: how much, and where they are kept.

As many prompts and as large an image as the device manages in a stated time; on a GPU that is all of it. What was
measured is kept beside the build's other results, under the digest of the student without its style LoRAs, whose scales
serve it with any, and used again. ``python -m export.calibrate`` measures as asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from export.folders.places import Needs
from export.quality.load import expected_loads, speed
from export.quality.measure import Run, measure
from export.reporting import Report, silent

if TYPE_CHECKING:
    from export.students.subject import Subject

SECONDS = 1800.0
"""What calibration may take by its estimate; the smallest run is taken where even that takes longer."""

_BATCH = 4
_PROMPTS = (16, 8, 4)
_SHARES = (1, 2, 4)
"""Sides of an image: the model's usual ones over these."""


@dataclass(frozen=True)
class Own:
    """What would be measured, what that takes, and the bytes of memory that there are."""

    run: Run
    needed: Needs
    free: int

    def check(self) -> None:
        """Raise ExportError where the memory is not there."""
        self.needed.check(self.free, "calibrate on a larger machine (python -m export.calibrate), give --calibration")

    def scales(self, subject: Subject, workdir: Path, report: Report = silent) -> Path:
        """The file of scales of the digested student, measured now unless it is there already. Raises an ArcFlowError.

        A run that was stopped resumes.
        """
        from export.fp8.calibration import write_calibration

        student = subject.student.parents.plain
        path = workdir / f"calibration-{student.digest[:16]}.json"
        if not path.is_file():
            self.check()
            run = replace(self.run, student=student)
            prompted = subject.prompted(run.prompts, run.width, run.height, run.dtype, run.device, report)
            write_calibration(measure(run, prompted, workdir / "calibrate", partial(report, "student")), path)
        return path


def choose_run(subject: Subject) -> Own:
    """The largest run that stays within ``SECONDS``, or the smallest there is."""
    return within(SECONDS, (Own(*load) for load in expected_loads(subject, usual_runs(subject.plain()))))


class _Estimated(Protocol):
    """What it takes is known."""

    @property
    def needed(self) -> Needs: ...


_Any = TypeVar("_Any", bound=_Estimated)


def within(seconds: float, found: Iterable[_Any]) -> _Any:
    """The first that takes so long at most, the last where none does."""
    for one in found:
        if (one.needed.seconds or 0.0) <= seconds:
            break
    return one


def usual_runs(subject: Subject, counts: Sequence[int] = _PROMPTS) -> Iterator[Run]:
    """From all prompts at the model's usual size down to a few of a quarter of its sides. counts: of prompts."""
    import torch

    from export.fp8.observers import Method
    from export.networks.streaming import choose_placement
    from export.students.prompts import default_prompts, read_prompts

    backbone, limits = subject.whole, subject.spec.limits
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, prompts = subject.default_dtype(), read_prompts(default_prompts(subject.spec.name))
    if device.type == "cpu" and speed(torch.float32, device) > speed(dtype, device):
        dtype = torch.float32  # Not every CPU multiplies bfloat16.
    side = subject.latent.vae_factor * subject.latent.patch
    whole = Run(
        backbone=backbone,
        student=subject.student.parents,
        sigmas=subject.sigmas(),
        prompts=prompts,
        width=limits.width.opt,
        height=limits.height.opt,
        method=Method.AMAX,
        percentile=100.0,
        dtype=dtype,
        device=device,
        placement=choose_placement(backbone, dtype, device),
        batch=_BATCH,
    )
    yield whole
    for share in _SHARES:
        width, height = (max(size // share // side, 1) * side for size in (whole.width, whole.height))
        for count in counts:
            yield replace(whole, prompts=prompts[:count], width=width, height=height)
