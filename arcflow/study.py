"""``python -m arcflow.study --recipe tiny``: variants of the method at one budget, and which claims hold.

Several processes may share one study; start it once for each idle core.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from arcflow.recipe import add_recipe_options
from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from arcflow.recipe import Recipe
    from arcflow.studying.runner import Job, Study

_EPILOG = """An interrupted run resumes where it stopped, in whatever process comes to it first; one that
another process is at is passed over. Training takes one thread a process: two processes are faster than one with two
threads, and a study's seconds are those of one core. Figures wait for nothing: what is finished is told.

examples:
  python -m arcflow.study --recipe tiny --dry-run
  python -m arcflow.study --recipe tiny
  nice -n 19 python -m arcflow.study --recipe tiny --variant arcflow linear --seeds 1
  python -m arcflow.study --recipe tiny --report --json > benchmarks/study-tiny.json"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, then tell what is found; returns 0. Raises ArcFlowError."""
    args = _parser().parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from arcflow.recipe import load_recipe, own_teacher
    from arcflow.studying.variants import chosen, variants

    recipe = load_recipe(args.recipe)
    own_teacher(recipe)
    changed = {name: getattr(args, name) for name in ("iterations", "seeds") if getattr(args, name) is not None}
    recipe = replace(recipe, study=replace(recipe.study, **changed))
    chosen(recipe, args.variant)  # What is wrong with them is said before anything is opened.
    study = _open(args, recipe)
    recipe = study.subject.recipe  # With its precision decided, which variants take over.
    jobs = study.jobs(chosen(recipe, args.variant), recipe.study.seeds)
    if args.dry_run:
        print(_plan(study, jobs))
        return 0
    passed = [] if args.report else study.work(jobs, lambda line: sys.stderr.write(line + "\n"))
    if passed:
        sys.stderr.write(f"{len(passed)} runs are in work by other processes; the same command tells of them later\n")
    every = study.jobs(list(variants(recipe).values()), recipe.study.seeds)
    _tell(args, study, every, argv)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m arcflow.study",
        description="Train variants of the method's student at one budget (heads of other papers, ranks, full "
        "fine-tuning, several numbers of evaluations, FP8 in training), measure them from the same noises, and tell "
        "which claims hold, by how many standard errors. Writes figures and plots.",
        epilog=_EPILOG,
    )
    add_recipe_options(parser, "--workdir", "--data")
    add = parser.add_argument
    add("--base", "--teacher", metavar="BASE", help="the teacher's folder (default: WORKDIR/teacher or "
        "models/RECIPE/teacher)")  # fmt: skip
    add("--classifier", type=Path, help="the judge's weights (default: models/RECIPE/classifier.safetensors)")
    add("--variant", nargs="+", metavar="NAME", help="train these alone (default: all; --dry-run names them)")
    add("--seeds", type=int, metavar="N", help="trainings of each variant (default: the recipe's)")
    add("--iterations", type=int, metavar="N", help="of each training (default: the recipe's)")
    add("--precision", choices=("fp32", "bf16"), help="what networks compute in while they are trained (default: the "
        'recipe\'s; of "auto" what the study\'s first process finds faster)')  # fmt: skip
    add("--dry-run", action="store_true", help="say what is finished, what is to be done and about how long it takes")
    add("--report", action="store_true", help="train nothing, tell what is finished")
    add("--json", action="store_true", help="print one JSON object, not tables")
    add("--out", type=Path, help="folder of tables and plots (default: WORKDIR/study/report)")
    return parser


def _open(args: Namespace, recipe: Recipe) -> Study:
    """The study in its folder, with teacher, prompts and judge. Raises ArcFlowError."""
    import torch

    from arcflow.distill import choose_base, choose_prompts
    from arcflow.studying.runner import Study, decide_precision
    from arcflow.studying.subject import Subject
    from arcflow.tiny.judging import open_judge
    from arcflow.tiny.stages import CLASSIFIER, MODELS

    torch.set_num_threads(1)
    workdir = args.workdir or Path(".work") / recipe.name
    base = choose_base(recipe, args.base, workdir)
    judge = open_judge(recipe, recipe.study.noises, args.classifier or MODELS / recipe.name / CLASSIFIER, args.data)
    folder = workdir / "study"
    precision = decide_precision(recipe, base, folder, args.precision, keep=not args.dry_run)
    loop = replace(recipe.distill.loop, precision=precision)
    recipe = replace(recipe, distill=replace(recipe.distill, loop=loop))
    return Study(Subject(recipe, base, choose_prompts(recipe), judge, precision), folder)


def _plan(study: Study, jobs: Sequence[Job]) -> str:
    """What is finished and what is to be done, a line a variant, with an estimate of the training."""
    from arcflow.studying.runner import expected_seconds
    from foundation.measuring import table

    finished = study.ledger.read()
    by_name: dict[str, list[Job]] = {}
    for job in jobs:
        by_name.setdefault(job.variant.name, []).append(job)
    known = [finished[job.key] for job in jobs if job.key in finished]
    lines, left = [("variant", "what", "finished", "to do", "core minutes")], 0.0
    for name, own in by_name.items():
        missing = [job for job in own if job.key not in finished]
        seconds = len(missing) * expected_seconds(study.subject, own[0].variant, known)
        left += seconds
        lines.append(
            (name, own[0].variant.about, str(len(own) - len(missing)), str(len(missing)), f"{seconds / 60:.0f}")
        )
    where = f"{study.folder}, in {study.subject.precision}: {len(jobs) - len(known)} of {len(jobs)} runs are to be done"
    how = "as finished runs took" if known else "by the time of a matrix product"
    return f"{where}\n{table(lines, right=(2, 3, 4))}\nabout {left / 3600:.1f} hours of one core for training, {how}"


def _tell(args: Namespace, study: Study, jobs: Sequence[Job], argv: Sequence[str] | None) -> None:
    """Tables, figures and plots of all that is finished."""
    from arcflow.errors import StudyError
    from arcflow.studying.claims import claims
    from arcflow.studying.measuring import TEACHER
    from arcflow.studying.plots import draw
    from arcflow.studying.tables import claim_rows, markdown, ordered, report, rows
    from foundation.files import atomic_file
    from foundation.measuring import begin, keep, table

    recipe = study.subject.recipe
    runs = ordered(study.ledger.read().values(), [(job.variant.name, job.seed, job.key) for job in jobs])
    if not runs:
        raise StudyError(f"no run of this study is finished in {study.folder}: leave out --report to begin it")
    teacher = study.teacher()
    abouts = {job.variant.name: job.variant.about for job in jobs}
    found = claims(recipe, runs, teacher)
    out = args.out or study.folder / "report"
    record = begin("python -m arcflow.study", argv) | report(recipe, runs, teacher, found, abouts)
    keep(out / "study.json", record)
    lines, decided = rows(recipe, runs, teacher, abouts), claim_rows(found)
    right = range(1, len(lines[0]))
    with atomic_file(out / "study.md") as temporary:
        text = f"{markdown(lines, right)}\n\n{markdown(decided, (2, 3))}\n"
        temporary.write_text(text, encoding="utf-8")
    strips = {TEACHER: study.images(teacher)} | {name: study.images(records[0]) for name, records in runs.items()}
    plots = draw(runs, teacher, recipe.distill.nfe, {k: v for k, v in strips.items() if v.is_file()}, out)
    if args.json:
        print((out / "study.json").read_text(encoding="utf-8").rstrip())
        return
    print(f"{table(lines, right)}\n\n{table(decided, (2, 3))}")
    print(f"files in {out}: study.json, study.md, {', '.join(path.name for path in plots)}")


if __name__ == "__main__":
    sys.exit(run(main))
