"""Distillation of the tiny recipe on the GPU: how fast, and, with time left, a student that trained longer."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.measuring import Timing, timing
from gpu.catalogue import Options
from gpu.device import torch_device
from gpu.records import Emit, Printer, SkipPartError, guarded

if TYPE_CHECKING:
    from arcflow.recipe import Recipe
    from arcflow.tiny.teacher_folder import TeacherFolder

MODELS = Path(__file__).parents[2] / "models" / "tiny"
TEACHER, COMMITTED = MODELS / "teacher", MODELS / "adapter"
WARM_UP = 20
BATCHES = (32, 256, 1024)
"""The recipe's own, and two that fill a GPU better."""

_SEEDS = 60


class _TimeIsUpError(Exception):
    """Ends a training run that was given so many seconds."""


def run(printer: Printer, options: Options) -> None:
    """Throughput at some batch sizes; then training, where seconds were given for it."""
    torch_device(options)
    if not TEACHER.is_dir():
        raise SkipPartError(f"the trained teacher is not here: {TEACHER}")
    recipe = tiny_recipe()
    for batch in options.pick(BATCHES, BATCHES[:1], (2,)):
        what = f"distillation, batch {batch}"
        guarded(printer, what, partial(measure, printer, what, recipe, batch, options.pick(60, 5, 2), options.out))
    if seconds := options.train_seconds:
        what = "distillation, trained longer"
        guarded(printer, what, lambda: train(printer, what, recipe, TEACHER, seconds, options.out))


def tiny_recipe() -> Recipe:
    """The embedded model's recipe in bfloat16, which every GPU multiplies in that these figures are for."""
    from arcflow.recipe import load_recipe

    return _with_loop(load_recipe("tiny"), precision="bf16")


def measure(emit: Emit, what: str, recipe: Recipe, batch: int, iterations: int, work: Path) -> None:
    """The throughput at one batch size."""
    each = throughput(recipe, TEACHER, batch, iterations, work)
    pace = 1 / each.median_s
    emit(what, f"{pace:.1f} iterations/s, {pace * batch:.0f} images/s", batch=batch, iteration=asdict(each))


def throughput(recipe: Recipe, base: Path, batch: int, iterations: int, work: Path) -> Timing:
    """Train that long from the start, in a folder that is thrown away, and time the iterations after a warm-up."""
    times: list[float] = []
    warm_up = min(WARM_UP, iterations)
    sized = _with_loop(recipe, batch=batch, iterations=warm_up + iterations, save_every=1_000_000)
    with _scratch(work) as folder:
        _fit(sized, base, folder, lambda *_: times.append(time.perf_counter()))
    return timing([b - a for a, b in itertools.pairwise(times[warm_up - 1 :])])


def train(emit: Emit, what: str, recipe: Recipe, base: Path, seconds: int, work: Path) -> None:
    """Distil for that long, save the adapter, and compare it with the committed one by the error in the latent.

    The iterations are chosen from the throughput, so that the recipe's schedule and average see a whole run.
    """
    from arcflow.adapter import save_adapter
    from arcflow.policy import policy_of
    from arcflow.tiny.teacher_folder import open_teacher

    pace = throughput(recipe, base, recipe.distill.loop.batch, 40, work).median_s
    iterations = max(50, int(0.85 * seconds / pace))
    longer = _with_loop(recipe, iterations=iterations, save_every=1_000_000)
    limit = time.monotonic() + 1.2 * seconds

    def watch(done: int, *_: object) -> None:
        if time.monotonic() > limit:
            raise _TimeIsUpError(f"{done} of {iterations} iterations in {seconds} s")

    start = time.monotonic()
    with _scratch(work) as scratch:
        student = _fit(longer, base, scratch, watch)
    spent = time.monotonic() - start
    folder = work / "tiny-adapter"
    save_adapter(student, student.backbone.config, policy_of(recipe), folder)
    teacher = open_teacher(base)
    teacher.transformer.to(next(student.parameters()).device)
    ours, before = errors(recipe, teacher, folder), errors(recipe, teacher, COMMITTED)
    emit(
        what,
        f"{iterations} iterations in {spent:.0f} s: error {ours:.4f} against {before:.4f} of the committed student",
        iterations=iterations,
        seconds=spent,
        error=ours,
        committed_error=before,
        adapter=str(folder),
    )


def errors(recipe: Recipe, teacher: TeacherFolder, adapter: Path) -> float:
    """Mean relative L2 error of the two-step latents to the teacher's own endpoint, on held-out prompts and noise."""
    import numpy as np
    import torch

    from arcflow.adapter import merge_into, read_adapter
    from arcflow.evaluation.metrics import relative_l2
    from arcflow.sampling import sample_student, sample_teacher
    from arcflow.students import architecture, build_student
    from arcflow.tiny.captions import evaluation_prompts
    from arcflow.tiny.teacher_folder import SIDE
    from foundation import noise

    family, where = architecture(recipe.architecture), next(teacher.transformer.parameters()).device
    read = read_adapter(adapter)
    student = build_student(teacher.transformer.config, read.config.modes)  # type: ignore[arg-type]
    weights = {name: value.cpu() for name, value in teacher.transformer.state_dict().items()}
    merge_into(student, weights, read).eval().to(where)
    prompts = [text for text, _ in evaluation_prompts(_SEEDS)]
    condition = teacher.condition(prompts, recipe.guidance).to(where)
    first = recipe.evaluate.first_seed
    drawn = [noise.normal(first + i, SIDE * SIDE, teacher.packed_channels) for i in range(_SEEDS)]
    start = torch.from_numpy(np.stack(drawn)).to(where)
    trained = read.config.policy.conditioning_dtype
    ends, _ = sample_student(family, student, start, condition, recipe.distill.nfe, recipe.shift, trained=trained)
    wanted, _ = sample_teacher(
        family, teacher.transformer, start, condition, recipe.evaluate.reference_steps, recipe.shift, trained=trained
    )
    return float(relative_l2(ends, wanted).mean())


def _fit(recipe: Recipe, base: Path, work: Path, watch: Callable[..., None]) -> Any:
    """The recipe's distillation, on the GPU where there is one; the trained student."""
    from arcflow.distill import choose_base, choose_prompts
    from arcflow.training.loop import fit
    from arcflow.training.run import choose_accelerator, prepare

    accelerator = choose_accelerator(None)
    opened = choose_base(recipe, base, work)
    ready = prepare(recipe, opened, choose_prompts(recipe), recipe.student, accelerator)
    loop = recipe.distill.loop
    fit(ready.student, ready.step, loop, work, accelerator=accelerator, groups=ready.groups, report=watch)
    return ready.student


def _with_loop(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, distill=replace(recipe.distill, loop=replace(recipe.distill.loop, **changes)))


@contextmanager
def _scratch(work: Path) -> Iterator[Path]:
    """A folder that goes again."""
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="distil-", dir=work) as folder:
        yield Path(folder)
