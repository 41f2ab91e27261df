"""The runs of a study: what is there, what is to be done, and doing it beside other processes that do the same."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from safetensors.torch import save_file

from arcflow.evaluation.progress import Progress
from arcflow.recipe import Recipe, Settled
from arcflow.sources.base import Base
from arcflow.studying.ledger import Ledger, Record, locked
from arcflow.studying.measuring import TEACHER, Measure
from arcflow.studying.reference import open_reference
from arcflow.studying.subject import Subject
from arcflow.studying.trial import train
from arcflow.studying.variants import Variant
from arcflow.training.precision import settle
from arcflow.training.progress import reporting
from foundation.files import atomic_file

_PRECISION = "precision"
_IMAGES = "images"


@dataclass(frozen=True)
class Job:
    """A run of a study: a variant from a training seed. key: digest of all that it depends on."""

    variant: Variant
    seed: int
    key: str

    @property
    def name(self) -> str:
        """For people, and of its folder."""
        return f"{self.variant.name}-{self.seed}"


@dataclass(frozen=True)
class Study:
    """A study in a folder, which several processes may work on at once."""

    subject: Subject
    folder: Path

    @property
    def ledger(self) -> Ledger:
        """What is finished."""
        return Ledger(self.folder)

    def jobs(self, variants: Sequence[Variant], seeds: int) -> list[Job]:
        """All runs, each seed's after those of the seed before it, so that a first table is there early."""
        return [Job(one, seed, self.subject.key(one, seed)) for seed in range(seeds) for one in variants]

    def work(self, jobs: Sequence[Job], tell: Callable[[str], object]) -> list[Job]:
        """Do what is not done, and return what other processes are at. Raises ArcFlowErrors of training and disk.

        A run is one process's at a time; one that another process is at is passed over. One that was interrupted goes
        on where it stopped, in whatever process comes to it first.
        """
        passed = []
        for job in jobs:
            with locked(self.folder, job.key) as had:
                if not had:
                    tell(f"{job.name} is in work by another process: passed over")
                    passed.append(job)
                elif job.key not in self.ledger.read():
                    self._do(job)
        return passed

    def teacher(self) -> Record:
        """The record of the teacher's own steps, made where it is missing."""
        key = self.subject.key()
        found = self.ledger.read().get(key)
        if found is None:
            found = self._measure.teacher()
            self._keep_images(TEACHER, key, self._measure.shown())
            self.ledger.add(found)
        return found

    def images(self, record: Record) -> Path:
        """Where the first images of a record are kept."""
        return self.folder / _IMAGES / f"{record.variant}-{record.key}.safetensors"

    @cached_property
    def _measure(self) -> Measure:
        advance = Progress()
        return Measure(self.subject, open_reference(self.subject, self.folder, advance), advance)

    def _do(self, job: Job) -> None:
        folder = self.folder / "runs" / f"{job.name}-{job.key}"
        measure = self._measure
        with reporting(job.name, job.variant.distill.loop.iterations) as report:
            trial = train(self.subject, measure.reference, job.variant, job.seed, folder, report)
        record, images = measure.student(trial, job.variant, job.seed)
        self._keep_images(job.variant.name, job.key, images)
        self.ledger.add(record)
        shutil.rmtree(folder, ignore_errors=True)

    def _keep_images(self, name: str, key: str, images: torch.Tensor) -> None:
        whole = (127.5 * (images + 1)).round().byte().permute(0, 2, 3, 1).contiguous()
        with atomic_file(self.folder / _IMAGES / f"{name}-{key}.safetensors") as temporary:
            save_file({"images": whole}, temporary)


def decide_precision(recipe: Recipe, base: Base, folder: Path, wanted: Settled | None, keep: bool = True) -> Settled:
    """What a study's networks compute in while they are trained: as wanted, or as its first process decided.

    keep: whether a decision is written down for the processes that follow. Raises CheckpointError.
    """
    loop = recipe.distill.loop
    if wanted is not None or loop.precision != "auto":
        return wanted or ("bf16" if loop.bf16 else "fp32")
    path = folder / _PRECISION
    with locked(folder, _PRECISION, wait=True):
        known = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        if known in ("fp32", "bf16"):
            return "bf16" if known == "bf16" else "fp32"
        found = settle(loop, base.blank(), folder, torch.device("cpu"), lambda line: sys.stderr.write(line + "\n"))
        decided: Settled = "bf16" if found.bf16 else "fp32"
        if keep:
            with atomic_file(path) as temporary:
                temporary.write_text(decided + "\n", encoding="utf-8")
        return decided


def expected_seconds(subject: Subject, variant: Variant, found: Sequence[Record]) -> float:
    """Seconds of one core that a run's training takes: as runs of it took, or else by the time of a matrix product."""
    loop = variant.distill.loop
    own = [record for record in found if record.variant == variant.name] or list(found)
    if own:
        return loop.iterations * sum(record.seconds for record in own) / sum(record.iterations for record in own)
    # Two operations a parameter and token in a forward; a backward takes two forwards, LoRA's a little less.
    speed = _operations_a_second(torch.bfloat16 if subject.precision == "bf16" else torch.float32)
    tokens = subject.grid[0] * subject.grid[1] + subject.recipe.distill.text_tokens
    parameters: int = sum(parameter.numel() for parameter in subject.base.blank().parameters())
    forwards = variant.distill.nfe * (variant.distill.intermediate_states + 3)
    return loop.iterations * loop.batch * forwards * 2 * parameters * tokens / speed


@cache
def _operations_a_second(dtype: torch.dtype, side: int = 256, products: int = 20) -> float:
    """Of matrix products on one core, by its own clock: what else the machine does is not counted."""
    a = torch.ones(side, side, dtype=dtype)
    _ = a @ a
    start = time.process_time()
    for _ in range(products):
        _ = a @ a
    return 2.0 * side * side * side * products / max(time.process_time() - start, 1e-6)
