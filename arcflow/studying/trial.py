"""One training of a study: resumed where it stopped, looked at as it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from arcflow.evaluation.metrics import relative_l2
from arcflow.students import Student
from arcflow.studying.ledger import Point
from arcflow.studying.reference import Reference
from arcflow.studying.subject import Subject
from arcflow.studying.variants import Variant, method_of
from arcflow.training.loop import Iteration, Look, Reporter, fit
from arcflow.training.run import prepare


@dataclass(frozen=True)
class Trial:
    """A trained student, with averaged weights and in evaluation mode, and how it came there."""

    student: Student
    curve: tuple[Point, ...]
    seconds: float


def train(
    subject: Subject,
    reference: Reference,
    variant: Variant,
    seed: int,
    folder: Path,
    report: Reporter | None = None,
    stop_after: int | None = None,
) -> Trial:
    """Train a variant's student from a seed. folder: keeps its state, from which an interrupted run goes on.

    stop_after: as of ``fit`` (tests). Raises CheckpointError, BackboneError, PromptsError, RecipeError.
    """
    recipe = variant.applied(subject.recipe, seed)
    ready = prepare(
        recipe, subject.base, subject.prompts, variant.student, Accelerator(cpu=True),
        method=method_of(variant, recipe),
    )  # fmt: skip
    watched = _Watched(subject, reference, ready.student, ready.step, folder / "curve.jsonl")
    fit(
        ready.student, watched.step, recipe.distill.loop, folder, groups=ready.groups, report=report,
        look=watched.look, stop_after=stop_after, identity=f"{ready.identity} {subject.key(variant, seed)}",
    )  # fmt: skip
    if stop_after is None:
        watched.begin(recipe.distill.loop.iterations)  # Where nothing was left to do.
    return Trial(ready.student.eval(), tuple(watched.points), watched.seconds)


def held_out_error(subject: Subject, reference: Reference, student: Student) -> float:
    """Mean relative L2 of a student's few evaluations over the noises that are looked at."""
    run = subject.student(student.backbone, subject.recipe.distill.nfe)
    ends = subject.sample(run, subject.looked_at, "", lambda *_: None)
    return float(relative_l2(ends.x, reference.looked_at).mean())


@dataclass
class _Watched:
    """A step that counts the processor's seconds, and the looks between steps, whose points are kept in a file."""

    subject: Subject
    reference: Reference
    student: Student
    inner: Callable[[nn.Module, Iteration], dict[str, float]]
    path: Path
    points: list[Point] = field(default_factory=list)
    seconds: float = 0.0
    _began: bool = False

    def step(self, module: nn.Module, it: Iteration) -> dict[str, float]:
        self.begin(it.index)
        start = time.process_time()
        figures = self.inner(module, it)
        self.seconds += time.process_time() - start
        return figures

    def look(self, done: int, weights: AbstractContextManager[None]) -> Look | None:
        study = self.subject.recipe.study
        if done % study.look_every and done != study.iterations:
            return None
        with weights, torch.no_grad():
            self.student.eval()
            error = held_out_error(self.subject, self.reference, self.student)
            self.student.train()
        self.points.append((done, round(self.seconds, 3), error))
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(self.points[-1]) + "\n")
        return Look({"held_out": error})

    def begin(self, done: int) -> None:
        """Once, take over the points of the run that is continued after ``done`` iterations; later ones come anew."""
        if self._began:
            return
        self._began = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = [point for point in _points(self.path) if point[0] <= done]
        self.points = found
        self.seconds = found[-1][1] if found else 0.0
        self.path.write_text("".join(json.dumps(point) + "\n" for point in found), encoding="utf-8")


def _points(path: Path) -> list[Point]:
    """The points in a file, up to one that was not written whole."""
    found: list[Point] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                point: Any = json.loads(line)
                found.append((int(point[0]), float(point[1]), float(point[2])))
            except (ValueError, TypeError, IndexError):
                break
    return found
