"""The figures of one student, and of the teacher's own few steps, from the same noises."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from arcflow.evaluation.metrics import frechet_distance, psnr_db, relative_l2
from arcflow.evaluation.samplers import CHUNK, Advance
from arcflow.field import MomentumField, Prediction
from arcflow.sampling import integrate
from arcflow.schedule import sigmas
from arcflow.students import Student
from arcflow.studying.ledger import Few, Record
from arcflow.studying.reference import Reference
from arcflow.studying.subject import Subject
from arcflow.studying.trial import Trial
from arcflow.studying.variants import Variant
from arcflow.training.fp8 import Fp8Linears

TEACHER = "teacher"
"""The name under which the teacher's own steps are recorded."""
GAMMA_EDGES = tuple(step / 5 for step in range(-20, 21))
"""Edges of the bins of log gamma; what lies outside counts to the first or the last bin."""
SHOWN = 8
"""Images of a run that are kept, of the first noises, for people to compare."""
_DIGITS = 6


class Measure:
    """What is the same for all students: the teacher's images and what the judge sees in them."""

    def __init__(self, subject: Subject, reference: Reference, advance: Advance) -> None:
        self.subject, self.reference, self._advance = subject, reference, advance
        self._truth = subject.images(reference.x)
        self._seen = subject.judged(self._truth)[1]

    def student(self, trial: Trial, variant: Variant, seed: int) -> tuple[Record, Tensor]:
        """The record of a trained student, and its first images [SHOWN, 3, H, W] at the recipe's evaluations."""
        subject, student, nfe = self.subject, trial.student, self.subject.recipe.distill.nfe
        ends = {
            count: subject.sample(
                subject.student(student.backbone, count),
                subject.held_out,
                f"{variant.name}, {count} NFE",
                self._advance,
            )
            for count in dict.fromkeys((*subject.recipe.evaluate.nfe, *subject.recipe.study.several_nfe, nfe))
        }
        own = subject.student(student.backbone, nfe)
        diverse = subject.sample(own, subject.diverse, f"{variant.name}, diversity", self._advance).x
        trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
        record = Record(
            key=subject.key(variant, seed),
            variant=variant.name,
            seed=seed,
            precision=subject.precision,
            few={str(count): self.few(end.x) for count, end in ends.items()},
            diversity=self.diversity(diverse),
            trained=trained,
            share=trained / sum(parameter.numel() for parameter in subject.base.blank().parameters()),
            iterations=variant.distill.loop.iterations,
            seconds=round(trial.seconds, 1),
            curve=trial.curve,
            bands=bands(ends[nfe].path, self.reference.path),
            gammas=self._gammas(student),
            fp8=self._fp8(student, variant),
        )
        return record, subject.images(ends[nfe].x[:SHOWN])

    def teacher(self) -> Record:
        """The record of the teacher's own steps, the many among them."""
        recipe = self.subject.recipe
        few = {str(steps): self.few(x) for steps, x in self.reference.few.items()}
        few[str(recipe.evaluate.reference_steps)] = self.few(None)
        return Record(
            self.subject.key(), TEACHER, 0, self.subject.precision, few, self.diversity(self.reference.diverse)
        )

    def shown(self) -> Tensor:
        """The teacher's first images [SHOWN, 3, H, W]."""
        return self._truth[:SHOWN]

    def few(self, x: Tensor | None) -> Few:
        """Figures of endpoints [N, S, C] from the held-out noises; None: the reference's own."""
        images = self._truth if x is None else self.subject.images(x)
        logits, features = self.subject.judged(images)
        judge = self.subject.judge
        return Few(
            errors=() if x is None else _rounded(relative_l2(x, self.reference.x)),
            psnr_db=None if x is None else float(psnr_db(images, self._truth).mean()),
            frechet=frechet_distance(features, judge.reals),
            from_teacher=None if x is None else frechet_distance(features, self._seen),
            accuracy=float((logits.argmax(dim=1) == judge.labels).float().mean()),
        )

    def diversity(self, x: Tensor) -> tuple[float, ...]:
        """Mean distance of two images of one prompt, by prompt: root mean square over pixels in [-1, 1]."""
        images, each = self.subject.images(x).flatten(1), self.subject.recipe.study.diversity_noises
        scale = images.shape[1] ** 0.5
        return tuple(round(float(torch.pdist(part).mean()) / scale, _DIGITS) for part in images.split(each))

    @torch.no_grad()
    def _gammas(self, student: Student) -> tuple[tuple[float, ...], ...]:
        """By segment, what weight the gates give to modes of each bin of log gamma; empty where there are no gammas."""
        starts, recipe = self.subject.held_out, self.subject.recipe
        rows = slice(0, CHUNK)
        found: list[tuple[float, ...]] = []

        def evaluate(x: Tensor, sigma: Tensor) -> Prediction:
            prediction: Prediction = self.subject.base.architecture.evaluate(
                student.backbone, x, sigma, starts.condition[rows], self.subject.trained
            )
            return prediction

        def visit(field: Any, *_: object) -> None:
            if isinstance(field, MomentumField) and field.modes > 1:
                found.append(weights_by_gamma(field))

        levels = sigmas(recipe.distill.nfe, recipe.shift, recipe.distill.final_step_ratio)
        integrate(evaluate, starts.noise[rows], levels, visit)
        return tuple(found)

    def _fp8(self, student: Student, variant: Variant) -> tuple[float, ...]:
        """Errors by noise at the recipe's evaluations, inputs' scales measured on the first noises, as exported."""
        subject, nfe = self.subject, self.subject.recipe.distill.nfe
        run, name = subject.student(student.backbone, nfe), f"{variant.name}, FP8"
        linears = Fp8Linears(student)
        with linears.observed() as bounds:
            run(subject.held_out.noise[:CHUNK], subject.held_out.condition[slice(0, CHUNK)])
            known = dict(bounds)
        with linears.computing(known):
            return _rounded(relative_l2(subject.sample(run, subject.held_out, name, self._advance).x, self.reference.x))


def weights_by_gamma(field: MomentumField) -> tuple[float, ...]:
    """The gates' weight in each bin of ``GAMMA_EDGES``, mean over rows, tokens and positions; they sum to one."""
    logs = torch.nn.functional.pad(field.loggammas, (0, 0, 1, 0)).clamp(GAMMA_EDGES[0], GAMMA_EDGES[-1])
    edges = torch.tensor(GAMMA_EDGES[1:-1], dtype=logs.dtype)
    bins = torch.bucketize(logs.contiguous(), edges, right=True)
    weights = field.logweights.exp()
    sums = torch.zeros(len(GAMMA_EDGES) - 1, dtype=weights.dtype).index_add(0, bins.flatten(), weights.flatten())
    return _rounded(sums / sums.sum())


def bands(path: Mapping[float, Tensor], truth: Mapping[float, Tensor]) -> tuple[tuple[float, float, float], ...]:
    """(upper level, lower level, error) of neighbouring levels.

    error: the norm of what the state moves otherwise than the teacher's in between, over that of the teacher's
    endpoint, mean over rows. The differences themselves, as vectors, add up to that of the endpoints.
    """
    levels = sorted(truth, reverse=True)
    scale = truth[levels[-1]].flatten(1).norm(dim=1)
    found = []
    for upper, lower in itertools.pairwise(levels):
        moved = (path[lower] - path[upper]) - (truth[lower] - truth[upper])
        error = float((moved.flatten(1).norm(dim=1) / scale).mean())
        found.append((round(upper, _DIGITS), round(lower, _DIGITS), round(error, _DIGITS)))
    return tuple(found)


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, _DIGITS) for value in values.tolist())
