"""Which variants a recipe's study has, at what budget, and what is read of [study]."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arcflow.errors import RecipeError
from arcflow.recipe import DistillRecipe, StudyRecipe, load_recipe
from arcflow.studying.variants import budgeted, chosen, variants


def test_the_embedded_model_s_study() -> None:
    recipe = load_recipe("tiny")
    study = recipe.study
    assert (study.iterations, study.batch, study.seeds, study.noises) == (400, 8, 3, 300)
    found = variants(recipe)
    assert len(found) == 16 and next(iter(found)) == "arcflow"
    rivals = {"linear", "piecewise", "piecewise-midpoint", "pi-flow"}
    assert rivals | {"full-0.1", "full-0.03", "several-nfe", "in-fp8"} < set(found)
    assert all(name == one.name and one.about for name, one in found.items())
    assert found["arcflow"].student == recipe.student
    assert (found["wide-gammas"].student.gamma_range, found["wide-gammas"].student.gate_span) == ((1e-3, 1e3), 0.63)
    assert all(one.distill.sizes == ("64x64",) for one in found.values())
    assert found["full-0.1"].distill.loop.lr == pytest.approx(0.1 * recipe.distill.loop.lr)


def test_no_variant_is_the_recipe_s_own_twice() -> None:
    recipe = load_recipe("tiny")
    sixteen = replace(recipe, student=replace(recipe.student, modes=16, rank=2))
    assert {"arcflow-4", "arcflow-8"} <= set(variants(sixteen)) and "arcflow-16" not in variants(sixteen)
    assert "rank-2" not in variants(sixteen)
    wide = replace(recipe.student, gamma_range=(1e-3, 1e3), gate_span=0.63)
    assert "wide-gammas" not in variants(replace(recipe, student=wide))
    ways = [(v.student, v.distill, v.head, v.size, v.full) for v in variants(recipe).values()]
    assert len({repr(way) for way in ways}) == len(ways)


def test_the_budget_keeps_the_recipe_s_proportions() -> None:
    recipe = load_recipe("tiny")
    own, short = recipe.distill, budgeted(recipe)
    assert (short.loop.iterations, short.loop.batch) == (recipe.study.iterations, recipe.study.batch)
    for name in ("warmup", "ema_from", "clip_from"):
        share = getattr(own.loop, name) / own.loop.iterations
        assert getattr(short.loop, name) == pytest.approx(share * short.loop.iterations, abs=0.5)
    assert short.teacher_share_iterations == round(own.teacher_share_iterations * 400 / own.loop.iterations)
    assert short.watch_every == 0 and short.loop.save_every == recipe.study.look_every


def test_an_unknown_variant_is_refused_with_the_known() -> None:
    recipe = load_recipe("tiny")
    assert [one.name for one in chosen(recipe, ["linear", "arcflow"])] == ["arcflow", "linear"]
    assert len(chosen(recipe, None)) == 16
    with pytest.raises(RecipeError, match=r"no variant 'linaer': choose of arcflow, linear"):
        chosen(recipe, ["linaer"])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seeds": 0}, "seeds of .study. is 0"), ({"noises": 1}, "noises of .study. is 1"),
        ({"ranks": ()}, "ranks of .study. is"), ({"fp8_from": 1.0}, "fp8_from of .study."),
        ({"full_rates": (0.3, 0.0)}, "full_rates above 0"),
    ],
)  # fmt: skip
def test_a_wrong_study_is_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        StudyRecipe(**wrong)  # type: ignore[arg-type]


def test_wrong_options_of_training_are_refused() -> None:
    loop = load_recipe("tiny").distill.loop
    for wrong, words in (({"several_nfe": (2, 0)}, "several_nfe is"), ({"fp8_from": 1.0}, "fp8_from is 1.0")):
        with pytest.raises(RecipeError, match=words):
            DistillRecipe(loop=loop, **wrong)  # type: ignore[arg-type]
