"""What a study compares: heads of a student, and ways to train one, each at the same budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from arcflow.errors import RecipeError
from arcflow.recipe import DistillRecipe, Recipe, StudentRecipe

if TYPE_CHECKING:
    from arcflow.training.distillation import Method

Head = Literal["momentum", "piecewise", "piecewise-midpoint", "mixture"]

OWN = "arcflow"
"""The recipe's own student."""
LINEAR, PIECEWISE, MIDPOINT, MIXTURE = "linear", "piecewise", "piecewise-midpoint", "pi-flow"
WIDE, FULL, NO_DROPOUT, SEVERAL, IN_FP8 = "wide-gammas", "full", "no-dropout", "several-nfe", "in-fp8"
MODES = (4, 8, 16)
"""Numbers of modes that are compared, the recipe's own beside them."""


@dataclass(frozen=True)
class Variant:
    """One way to make a student.

    about: in a few words; size: intervals or Gaussians of a head that is not a momentum head; full: whether all
    weights are trained instead of LoRA.
    """

    name: str
    about: str
    student: StudentRecipe
    distill: DistillRecipe
    head: Head = "momentum"
    size: int = 0
    full: bool = False

    def applied(self, recipe: Recipe, seed: int) -> Recipe:
        """The recipe of one training of this variant."""
        loop = replace(self.distill.loop, seed=seed)
        return replace(recipe, student=self.student, distill=replace(self.distill, loop=loop))


def variants(recipe: Recipe) -> dict[str, Variant]:
    """All variants of a recipe's study by name, the recipe's own student first."""
    study, student, distill = recipe.study, recipe.student, budgeted(recipe)
    loop = distill.loop

    def modes(count: int) -> StudentRecipe:
        return replace(student, modes=count)

    def slower(rate: float) -> DistillRecipe:
        return replace(distill, loop=replace(loop, lr=rate * loop.lr))

    undropped, whole = replace(distill, mode_dropout=0.0), replace(student, dropout=0.0)
    low, high = study.gamma_range
    wide = replace(student, gamma_range=study.gamma_range, gate_span=study.gate_span)
    several = replace(distill, several_nfe=study.several_nfe)
    fp8 = replace(distill, fp8_from=study.fp8_from)
    half = study.pieces // 2
    numbers = ", ".join(map(str, study.several_nfe))
    found = [
        Variant(OWN, f"ArcFlow, {student.modes} modes, rank {student.rank}", student, distill),
        Variant(LINEAR, "one mode: a straight line", modes(1), distill),
        Variant(PIECEWISE, f"PDD, {study.pieces} intervals", student, distill, "piecewise", study.pieces),
        Variant(MIDPOINT, f"PDD by midpoints, {half} intervals", student, distill, "piecewise-midpoint", half),
        Variant(MIXTURE, f"pi-Flow, {study.mixture} Gaussians", student, distill, "mixture", study.mixture),
        *(Variant(f"{OWN}-{k}", f"ArcFlow, {k} modes", modes(k), distill) for k in MODES if k != student.modes),
        *([] if wide == student else [Variant(WIDE, f"gammas from {low:g} to {high:g}", wide, distill)]),
        *(
            Variant(f"rank-{rank}", f"ArcFlow, rank {rank}", replace(student, rank=rank), distill)
            for rank in study.ranks
            if rank != student.rank
        ),
        *(
            Variant(f"{FULL}-{rate:g}", f"all weights, {rate:g} of the rate", student, slower(rate), full=True)
            for rate in study.full_rates
        ),
        Variant(NO_DROPOUT, "no dropout, of LoRA or of modes", whole, undropped),
        Variant(SEVERAL, f"trained for {numbers} evaluations", student, several),
        Variant(IN_FP8, f"in FP8 from {study.fp8_from:.0%} on", student, fp8),
    ]
    return {variant.name: variant for variant in found}


def chosen(recipe: Recipe, names: Sequence[str] | None) -> list[Variant]:
    """The variants of those names, in the study's order; all without names. Raises RecipeError for an unknown one."""
    known = variants(recipe)
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise RecipeError(f"there is no variant {unknown[0]!r}: choose of {', '.join(known)}")
    return [variant for name, variant in known.items() if not names or name in names]


def budgeted(recipe: Recipe) -> DistillRecipe:
    """The recipe's distillation at the study's budget: its warm-up and teacher's share keep their parts of the whole.

    It has the first of the recipe's sizes alone, at which figures are made. A checkpoint is written with every look,
    so that a run which is continued has lost no point of its curve.
    """
    study, loop = recipe.study, recipe.distill.loop
    scale = study.iterations / loop.iterations
    shortened = replace(
        loop,
        iterations=study.iterations,
        batch=study.batch,
        micro_batch=None,
        warmup=round(scale * loop.warmup),
        clip_from=round(scale * loop.clip_from),
        ema_from=round(scale * loop.ema_from),
        save_every=study.look_every,
    )
    share = round(scale * recipe.distill.teacher_share_iterations)
    first = recipe.distill.sizes[:1]
    return replace(recipe.distill, loop=shortened, teacher_share_iterations=share, sizes=first, watch_every=0)


def method_of(variant: Variant, recipe: Recipe) -> Method:
    """What the training of a variant is made of."""
    from functools import partial

    from arcflow.rivals.full import FullStudent
    from arcflow.rivals.mixture import MixtureHead
    from arcflow.rivals.piecewise import PiecewiseHead, block_loss
    from arcflow.students import MakeHead, Student
    from arcflow.training.distillation import Method, SegmentLoss, segment_loss

    make_head: MakeHead | None = None
    loss: SegmentLoss = segment_loss
    if variant.head == "mixture":
        make_head = partial(
            MixtureHead,
            modes=variant.size,
            bias_std=variant.student.head_bias_std,
            shift=recipe.shift,
            substeps=variant.distill.substeps,
        )
    elif variant.head != "momentum":
        make_head = partial(PiecewiseHead, pieces=variant.size, shift=recipe.shift)
        loss = partial(block_loss, midpoint=variant.head == "piecewise-midpoint")
    return Method(partial(FullStudent if variant.full else Student, make_head=make_head), loss)
