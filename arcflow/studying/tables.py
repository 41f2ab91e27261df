"""A study as a table to read, as Markdown, and as one JSON object."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from arcflow.recipe import Recipe
from arcflow.studying.claims import Claim, Runs
from arcflow.studying.ledger import Few, Record
from arcflow.studying.measuring import GAMMA_EDGES, TEACHER

HEAD = (
    "variant", "seeds", "rel. L2", "PSNR dB", "Frechet", "accuracy", "diversity", "in FP8", "trained", "core s"
)  # fmt: skip
CLAIMS_HEAD = ("verdict", "claim", "margin", "std. errors", "found")


def ordered(records: Iterable[Record], keys: Sequence[tuple[str, int, str]]) -> Runs:
    """Records of the runs (variant, seed, key) that are wanted, by variant; those that are not there are left out."""
    known = {record.key: record for record in records}
    found: dict[str, list[Record]] = {}
    for name, _, key in sorted(keys, key=lambda one: one[1]):
        if key in known:
            found.setdefault(name, []).append(known[key])
    order = list(dict.fromkeys(name for name, *_ in keys))
    return {name: found[name] for name in order if name in found}


def rows(recipe: Recipe, runs: Runs, teacher: Record, abouts: Mapping[str, str]) -> list[tuple[str, ...]]:
    """A row a variant: means over training seeds, the error with the standard error that seeds alone give it."""
    counts = sorted({count for records in runs.values() for record in records for count in record.few}, key=int)
    nfe = str(recipe.distill.nfe)
    head = [*HEAD]
    head[2:3] = [f"rel. L2 at {count}" for count in counts]
    lines = [tuple(head)]
    for name, records in runs.items():
        errors = [_pair([record.few[count].rel_l2 for record in records], 4) for count in counts]
        relative = [
            statistics.fmean(a / b for a, b in zip(record.diversity, teacher.diversity, strict=True))
            for record in records
        ]
        lines.append(
            (
                f"{name}: {abouts.get(name, '')}", str(len(records)), *errors,
                *_figures([record.few[nfe] for record in records]), _number(statistics.fmean(relative), ".3f"),
                _pair([statistics.fmean(record.fp8) for record in records], 4), f"{records[0].share:.2%}",
                f"{statistics.fmean(record.seconds for record in records):.0f}",
            )
        )  # fmt: skip
    for steps, few in sorted(teacher.few.items(), key=lambda item: int(item[0])):
        place = ["" for _ in counts]
        if steps in counts:
            place[counts.index(steps)] = f"{few.rel_l2:.4f}"
        many = steps == str(recipe.evaluate.reference_steps)
        lines.append(
            (f"{TEACHER}: {steps} steps", "", *place, *_figures([few]), "1.000" if many else "", "", "", "")
        )  # fmt: skip
    return lines


def claim_rows(found: Sequence[Claim]) -> list[tuple[str, ...]]:
    """A row a claim."""
    return [
        CLAIMS_HEAD,
        *(
            (one.verdict, one.statement, f"{one.margin:+.4f}", _number(one.sigmas, "+.1f"), one.note or one.measure)
            for one in found
        ),
    ]


def markdown(lines: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """Rows, the first of them the head, as a table of Markdown."""
    rule = ["---:" if place in right else "---" for place in range(len(lines[0]))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (lines[0], rule, *lines[1:]))


def report(recipe: Recipe, runs: Runs, teacher: Record, found: Sequence[Claim], abouts: Mapping[str, str]) -> Any:
    """The study as JSON has it: means and standard errors over seeds, curves, bands and gammas; no single noises."""
    return {
        "recipe": recipe.name,
        "budget": asdict(recipe.study),
        "precision": teacher.precision,
        "teacher": {
            "few": {steps: _summary([few]) for steps, few in teacher.few.items()},
            "diversity": _mean(teacher.diversity),
        },
        "variants": {name: _variant(records, teacher, abouts.get(name, "")) for name, records in runs.items()},
        "gamma_edges": GAMMA_EDGES,
        "claims": [{**asdict(one), "standard_errors": one.sigmas} for one in found],
    }


def _variant(records: Sequence[Record], teacher: Record, about: str) -> dict[str, Any]:
    counts = list(records[0].few)
    ratios = [
        _mean([a / b for a, b in zip(one.diversity, teacher.diversity, strict=True)]) for one in records
    ]  # fmt: skip
    return {
        "about": about,
        "seeds": [record.seed for record in records],
        "trained": records[0].trained,
        "share": records[0].share,
        "iterations": records[0].iterations,
        "core_seconds": _spread([record.seconds for record in records]),
        "few": {count: _summary([record.few[count] for record in records]) for count in counts},
        "fp8_rel_l2": _spread([_mean(record.fp8) for record in records]),
        "diversity_of_teacher": _spread(ratios),
        "curves": [record.curve for record in records],
        "bands": mean_bands(records),
        "gammas": records[0].gammas,
    }


def mean_bands(records: Sequence[Record]) -> list[tuple[float, float, float]]:
    """The bands' errors, mean over records."""
    return [
        (upper, lower, _mean([record.bands[place][2] for record in records]))
        for place, (upper, lower, _) in enumerate(records[0].bands)
    ]


def _summary(few: Sequence[Few]) -> dict[str, Any]:
    found: dict[str, Any] = {"rel_l2": _spread([one.rel_l2 for one in few])}
    for name in ("psnr_db", "frechet", "from_teacher", "accuracy"):
        values = [getattr(one, name) for one in few]
        found[name] = None if None in values else _spread(values)
    return found


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    error = math.sqrt(statistics.variance(values) / len(values)) if len(values) > 1 else None
    return {"mean": _mean(values), "standard_error": error}


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _figures(few: Sequence[Few]) -> tuple[str, str, str]:
    def mean(name: str, form: str) -> str:
        values = [getattr(one, name) for one in few]
        return "" if None in values else format(_mean(values), form)

    return mean("psnr_db", ".2f"), mean("frechet", ".2f"), mean("accuracy", ".3f")


def _pair(values: Sequence[float], digits: int) -> str:
    spread = _spread(values)
    error = spread["standard_error"]
    return f"{_mean(values):.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
