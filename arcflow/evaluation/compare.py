"""Measure a student and its linear twin against the teacher's own many-step endpoint under the same noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arcflow.adapter import Adapter, Policy, merge_into, read_adapter
from arcflow.architectures.conditioning import ConditioningDtype
from arcflow.architectures.flux import Condition
from arcflow.evaluation.metrics import (
    Figures,
    frechet_distance,
    paired_gain,
    pairwise_diversity,
    psnr_db,
    relative_l2,
)
from arcflow.evaluation.samplers import CHUNK, Advance, Sampled, sampled
from arcflow.recipe import Recipe
from arcflow.sampling import sample_student, sample_teacher
from arcflow.schedule import sigmas
from arcflow.sources.base import find_base
from arcflow.students import Coverage, architecture, build_student
from arcflow.tiny.judging import Judge
from arcflow.tiny.latents import CANVASES
from arcflow.tiny.teacher import USUAL, Grid
from arcflow.tiny.teacher_folder import TeacherFolder

_PATH_STRIDE = 5


@dataclass(frozen=True)
class Evaluation:
    """Everything measured. report: the JSON object; samples: endpoints by (kind, nfe); reference: the truth."""

    report: dict[str, Any]
    prompts: list[str]
    samples: dict[tuple[str, int], Sampled]
    reference: Sampled


def evaluate(
    recipe: Recipe,
    teacher: TeacherFolder,
    adapters: Mapping[str, Path],
    judge: Judge,
    advance: Advance,
    coverage: Coverage = "whole",
) -> Evaluation:
    """Sample and measure. adapters: folder of "student" and, where there is one, of "linear".

    The teacher sees noise levels as it did when the student was distilled from it, by the adapter's policy.
    judge: has a prompt for each of the recipe's seeds; coverage: which LoRA pairs an adapter must have. Raises
    AdapterError.
    """
    settings, texts = recipe.evaluate, list(judge.prompts)
    opened = {kind: read_adapter(folder) for kind, folder in adapters.items()}
    trained = opened["student"].config.policy.conditioning_dtype
    students = {}
    for kind, adapter in opened.items():
        student = build_student(teacher.transformer.config, adapter.config.modes)  # type: ignore[arg-type]
        merged = merge_into(student, teacher.transformer.state_dict(), adapter, coverage).eval()
        students[kind] = (merged, adapter.config.policy)
    levels = tuple(sigmas(settings.reference_steps, recipe.shift)[::_PATH_STRIDE])
    usual = _Samplers(recipe, teacher, students, trained, texts, USUAL, levels, advance)
    reference = usual.teacher_steps(settings.reference_steps)
    samples: dict[tuple[str, int], Sampled] = {("teacher", settings.reference_steps): reference}
    for nfe in settings.nfe:
        samples["teacher", nfe] = usual.teacher_steps(nfe)
        samples |= {(kind, nfe): usual.student(kind, nfe) for kind in students}
    figures = _figures(judge, teacher, reference)
    report: dict[str, Any] = {kind: {} for kind in (*adapters, "teacher")}
    for (kind, nfe), found in sorted(samples.items()):
        report[kind][str(nfe)] = asdict(figures(found))
    report["path_error"] = {k: path_error(samples[k, recipe.distill.nfe], reference) for k in adapters}
    report["trainable_fraction"] = trained_fraction(opened["student"], teacher.transformer)
    if {"student", "linear"} <= set(adapters):
        errors = [relative_l2(samples[k, recipe.distill.nfe].x, reference.x) for k in ("student", "linear")]
        report["gain_over_linear"] = paired_gain(*errors)
    report["other_sizes"] = _other_sizes(usual)
    report["seeds"] = settings.seeds
    report["guidance"], report["shift"] = recipe.guidance, recipe.shift
    report["conditioning_dtype"] = trained
    report["targets"] = targets(report, recipe)
    return Evaluation(report, texts, samples, reference)


@dataclass(frozen=True)
class _Samplers:
    """Teacher and students, from the same noises and prompts at one size. levels: where states are kept."""

    recipe: Recipe
    teacher: TeacherFolder
    students: Mapping[str, tuple[nn.Module, Policy]]
    trained: ConditioningDtype
    texts: Sequence[str]
    grid: Grid
    levels: tuple[float, ...]
    advance: Advance

    @cached_property
    def _starts(self) -> tuple[Tensor, Condition]:
        shape, first = (self.grid[0] * self.grid[1], self.teacher.packed_channels), self.recipe.evaluate.first_seed
        seeds = range(first, first + len(self.texts))
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return noise, self.teacher.condition(self.texts, self.recipe.guidance, self.grid)

    def teacher_steps(self, steps: int) -> Sampled:
        """The teacher's endpoints by so many Euler steps."""
        network, shift = self.teacher.transformer, self.recipe.shift
        run = partial(sample_teacher, self._architecture, network, steps=steps, shift=shift, trained=self.trained)
        return sampled(run, *self._starts, f"teacher, {steps} steps", self.advance, self.levels)

    def student(self, kind: str, nfe: int) -> Sampled:
        """A student's endpoints by so many evaluations."""
        network, policy = self.students[kind]
        run = partial(
            sample_student, self._architecture, network, nfe=nfe, shift=policy.shift, levels=self.levels,
            final_step_ratio=policy.final_step_ratio, trained=policy.conditioning_dtype,
        )  # fmt: skip
        return sampled(run, *self._starts, f"{kind}, {nfe} NFE", self.advance, self.levels)

    @property
    def _architecture(self) -> Any:
        return architecture(self.recipe.architecture)


def _other_sizes(usual: _Samplers) -> dict[str, dict[str, float]]:
    """Mean relative L2 at the other sizes that teachers are trained at, on a few of the prompts, by the usual NFE.

    Of students, and of the teacher's own steps of that number.
    """
    recipe, found = usual.recipe, {}
    base = find_base(usual.teacher.path, recipe.architecture)
    nfe, steps = recipe.distill.nfe, recipe.evaluate.reference_steps
    few = usual.texts[:: max(1, len(usual.texts) // CHUNK)][:CHUNK]
    for width, height in CANVASES:
        grid = base.grid(width, height)
        if grid == usual.grid:
            continue
        sized = replace(usual, texts=few, grid=grid, levels=(0.0,))
        truth = sized.teacher_steps(steps).x
        ends = {kind: sized.student(kind, nfe) for kind in usual.students} | {"teacher": sized.teacher_steps(nfe)}
        found[f"{width}x{height}"] = {kind: float(relative_l2(end.x, truth).mean()) for kind, end in ends.items()}
    return found


def targets(report: Mapping[str, Any], recipe: Recipe) -> dict[str, bool]:
    """Which of the aims for the embedded default hold for this report."""
    nfe, steps = str(recipe.distill.nfe), str(recipe.evaluate.reference_steps)
    ours, teacher = report["student"][nfe], report["teacher"]
    held = {
        "rel_l2 <= 0.12": ours["rel_l2"] <= 0.12,
        "rel_l2 <= 0.45 x teacher's two steps": ours["rel_l2"] <= 0.45 * teacher[nfe]["rel_l2"],
        "frechet <= 1.1 x teacher's": ours["frechet"] <= 1.1 * teacher[steps]["frechet"],
        "psnr_db >= 26": ours["psnr_db"] >= 26.0,
        "trainable_fraction < 0.05": report["trainable_fraction"] < 0.05,
    }
    if "4" in teacher:
        held["rel_l2 < teacher's four steps"] = ours["rel_l2"] < teacher["4"]["rel_l2"]
    if "gain_over_linear" in report:
        gain, path = report["gain_over_linear"], report["path_error"]
        held["gain over linear > 2 standard errors"] = gain["mean"] > 2.0 * gain["standard_error"]
        held["path_error <= 0.95 x linear's"] = path["student"] <= 0.95 * path["linear"]
    return held


def path_error(found: Sampled, reference: Sampled) -> float:
    """Distance between two trajectories: mean over seeds of the root mean square over the levels between the ends.

    In units of the reference endpoint's norm. Levels 1 (the same noise) and 0 (the endpoint, measured apart) stay out.
    """
    levels = [s for s in reference.path if 0.0 < s < 1.0 and s in found.path]
    scale = reference.x.flatten(1).norm(dim=1)
    gaps = torch.stack([(found.path[s] - reference.path[s]).flatten(1).norm(dim=1) / scale for s in levels])
    return float(gaps.square().mean(dim=0).sqrt().mean())


def trained_fraction(adapter: Adapter, backbone: nn.Module) -> float:
    """Values in the adapter (LoRA, head, ``norm_out``) as a share of the teacher's backbone."""
    values = sum(t.numel() for t in adapter.whole.values())
    values += sum(a.numel() + b.numel() for a, b in adapter.lora.values())
    return values / sum(p.numel() for p in backbone.parameters())


def _figures(judge: Judge, teacher: TeacherFolder, reference: Sampled) -> Callable[[Sampled], Figures]:
    """The measuring instrument: everything that is the same for all samplers is computed once."""
    truth, groups = teacher.decode(reference.x), judge.groups

    def figures(found: Sampled) -> Figures:
        images = truth if found is reference else teacher.decode(found.x)
        logits, features = judge.classify(images)
        return Figures(
            rel_l2=float(relative_l2(found.x, reference.x).mean()),
            frechet=frechet_distance(features, judge.reals),
            psnr_db=None if found is reference else float(psnr_db(images, truth).mean()),
            accuracy=float((logits.argmax(dim=1) == judge.labels).float().mean()),
            diversity=pairwise_diversity(features, groups),
        )

    return figures
