"""Measure a student and its linear twin against the teacher's own many-step endpoint under the same noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arcflow.adapter import Adapter, Policy, merge_into, read_adapter
from arcflow.architectures.flux import Condition
from arcflow.evaluation.metrics import (
    Figures,
    frechet_distance,
    paired_gain,
    pairwise_diversity,
    psnr_db,
    relative_l2,
)
from arcflow.evaluation.samplers import Advance, Run, Sampled, sampled
from arcflow.recipe import Recipe
from arcflow.sampling import sample_student, sample_teacher
from arcflow.schedule import sigmas
from arcflow.students import Coverage, architecture, build_student
from arcflow.tiny.judging import Judge
from arcflow.tiny.teacher_folder import SIDE, TeacherFolder

_PATH_STRIDE = 5


@dataclass(frozen=True)
class Evaluation:
    """Everything measured. report: the JSON object; samples: endpoints by (kind, nfe); path_levels: noise levels."""

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
    settings = recipe.evaluate
    texts = list(judge.prompts)
    condition = teacher.condition(texts, recipe.guidance)
    shape, first = (SIDE * SIDE, teacher.packed_channels), settings.first_seed
    seeds = range(first, first + settings.seeds)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    arch = architecture(recipe.architecture)
    opened = {kind: read_adapter(folder) for kind, folder in adapters.items()}
    trained = opened["student"].config.policy.conditioning_dtype
    levels = sigmas(settings.reference_steps, recipe.shift)[::_PATH_STRIDE]

    def sampler(name: str, run: Run) -> Sampled:
        return sampled(run, noise, condition, name, advance, levels)

    def teacher_sampler(steps: int) -> Sampled:
        def run(x: Tensor, c: Condition) -> tuple[Tensor, dict[float, Tensor]]:
            return sample_teacher(arch, teacher.transformer, x, c, steps, recipe.shift, trained=trained)

        return sampler(f"teacher, {steps} steps", run)

    def student_sampler(kind: str, student: nn.Module, policy: Policy, nfe: int) -> Sampled:
        def run(x: Tensor, c: Condition) -> tuple[Tensor, dict[float, Tensor]]:
            return sample_student(
                arch, student, x, c, nfe, policy.shift, policy.final_step_ratio, levels, policy.conditioning_dtype
            )

        return sampler(f"{kind}, {nfe} NFE", run)

    reference = teacher_sampler(settings.reference_steps)
    samples: dict[tuple[str, int], Sampled] = {("teacher", settings.reference_steps): reference}
    for nfe in settings.nfe:
        samples["teacher", nfe] = teacher_sampler(nfe)
    fractions = {}
    for kind, adapter in opened.items():
        fractions[kind] = trained_fraction(adapter, teacher.transformer)
        student = build_student(teacher.transformer.config, adapter.config.modes)  # type: ignore[arg-type]
        merge_into(student, teacher.transformer.state_dict(), adapter, coverage).eval()
        for nfe in settings.nfe:
            samples[kind, nfe] = student_sampler(kind, student, adapter.config.policy, nfe)
    figures = _figures(judge, teacher, reference)
    report: dict[str, Any] = {kind: {} for kind in (*adapters, "teacher")}
    for (kind, nfe), found in sorted(samples.items()):
        report[kind][str(nfe)] = asdict(figures(found))
    report["path_error"] = {k: path_error(samples[k, recipe.distill.nfe], reference) for k in adapters}
    report["trainable_fraction"] = fractions.get("student")
    if {"student", "linear"} <= set(adapters):
        errors = [relative_l2(samples[k, recipe.distill.nfe].x, reference.x) for k in ("student", "linear")]
        report["gain_over_linear"] = paired_gain(*errors)
    report["seeds"] = settings.seeds
    report["guidance"], report["shift"] = recipe.guidance, recipe.shift
    report["conditioning_dtype"] = trained
    report["targets"] = targets(report, recipe)
    return Evaluation(report, texts, samples, reference)


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
