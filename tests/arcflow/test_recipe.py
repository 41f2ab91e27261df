from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcflow.errors import RecipeError
from arcflow.recipe import RECIPES, load_recipe, parse_recipe
from arcflow.training import rate


def tiny() -> dict[str, Any]:
    return tomllib.loads((RECIPES / "tiny.toml").read_text())


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_loads_and_carries_its_own_name(path: Path) -> None:
    assert load_recipe(path.stem).name == path.stem
    assert load_recipe(str(path)) == load_recipe(path.stem)


BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "misspelt": (lambda d: d["student"].update(rnak=4), "unknown key 'student.rnak'"),
    "deep": (lambda d: d["teacher"]["vae"].update(speed=4), "unknown key 'teacher.vae.speed'"),
    "type": (lambda d: d.update(shift="much"), "shift"),
    "missing": (lambda d: d.pop("student"), "student"),
    "negative shift": (lambda d: d.update(shift=-1.0), "shift is -1.0"),
    "no rank": (lambda d: d["student"].update(rank=0), "rank is 0"),
    "no batch": (lambda d: d["distill"]["loop"].update(batch=0), "batch is 0"),
    "rate": (lambda d: d["distill"]["loop"].update(lr=2.0), "lr is 2.0"),
    "rope": (lambda d: d["teacher"]["size"].update(rope=[8, 8, 8]), "rope"),
    "architecture": (lambda d: d.update(architecture="sd3"), "sd3"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_wrong_recipe_is_refused(what: str) -> None:
    data = tiny()
    change, words = BAD[what]
    change(data)
    with pytest.raises(RecipeError, match=words):
        parse_recipe(data)


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"choose one of .*tiny"):
        load_recipe("huge")
    (tmp_path / "x.toml").write_text("a = [")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(str(tmp_path / "x.toml"))


def test_learning_rate_warms_up_and_decays() -> None:
    flow = load_recipe("tiny").teacher.flow  # type: ignore[union-attr]
    rates = [rate(flow, i) for i in range(flow.iterations)]
    assert rates[0] < 0.02 and max(rates) == pytest.approx(1.0) and rates[-1] == pytest.approx(0.02, abs=1e-3)
    distill = load_recipe("tiny").distill.loop
    assert rate(distill, distill.iterations - 1) == 1.0
