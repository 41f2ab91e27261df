from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcflow.errors import RecipeError
from arcflow.recipe import RECIPES, load_recipe, parse_recipe
from arcflow.training.loop import rate


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
    "gammas": (lambda d: d["student"].update(gamma_range=[4.0, 0.2]), "the smaller first"),
    "gates": (lambda d: d["student"].update(gate_span=1.5), "gate_span 1.5"),
    "no batch": (lambda d: d["distill"]["loop"].update(batch=0), "batch is 0"),
    "no sizes": (lambda d: d["distill"].pop("sizes"), "names no size of image"),
    "no size": (lambda d: d["distill"].update(sizes=["big"]), "write WIDTHxHEIGHT"),
    "rate": (lambda d: d["distill"]["loop"].update(lr=2.0), "lr is 2.0"),
    "rope": (lambda d: d["teacher"]["size"].update(rope=[8, 8, 8]), "rope"),
    "architecture": (lambda d: d.update(architecture="sd3"), "sd3"),
    "guidance": (lambda d: d.update(guidance_kind="cfg"), "guidance_kind is 'cfg': it must be 'embedded' for flux"),
    "two teachers": (lambda d: d.update(backbone={"num_layers": 1}), "either"),
    "no teacher": (lambda d: d.pop("teacher"), "either"),
    "teacher of another architecture": (
        lambda d: d.update(architecture="qwen", guidance_kind="cfg"),
        "trains a small FLUX",
    ),
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


@pytest.mark.parametrize("name", ["flux", "qwen", "flux-released", "qwen-released", "flux-krea", "qwen-2512"])
def test_full_size_recipes_are_the_method_s(name: str) -> None:
    recipe = load_recipe(name)
    loop = recipe.distill.loop
    qwen = recipe.architecture == "qwen"
    assert (loop.lr, loop.betas, loop.weight_decay, loop.warmup, loop.clip) == (1e-4, (0.9, 0.95), 0.0, 100, 50.0)
    assert (loop.ema_gamma, loop.decay, loop.iterations) == (7.0, "constant", 15_000 if qwen else 10_000)
    assert recipe.distill.teacher_share_iterations == (1000 if qwen else 2000)
    assert (recipe.shift, recipe.guidance) == (3.2, 4.0 if qwen else {"flux-krea": 4.5}.get(name, 3.5))
    assert (recipe.student.modes, recipe.student.dropout, recipe.distill.nfe) == (16, 0.05, 2)
    assert (recipe.student.rank == 256) == name.endswith("-released")


BASES = {
    "flux": "black-forest-labs/FLUX.1-dev",
    "flux-krea": "black-forest-labs/FLUX.1-Krea-dev",
    "qwen": "Qwen/Qwen-Image",
    "qwen-2512": "Qwen/Qwen-Image-2512",
}


@pytest.mark.parametrize("name", BASES)
def test_a_recipe_names_its_base(name: str) -> None:
    recipe, parent = load_recipe(name), load_recipe(name.split("-")[0])
    assert recipe.base == BASES[name]
    assert (recipe.backbone, recipe.student, recipe.distill) == (parent.backbone, parent.student, parent.distill)


def test_a_recipe_may_extend_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "flux"\nname = "mine"\n[student]\nrank = 8\n[distill.loop]\nbatch = 1\n')
    recipe, parent = load_recipe(str(path)), load_recipe("flux")
    assert (recipe.name, recipe.student.rank, recipe.distill.loop.batch) == ("mine", 8, 1)
    assert recipe.backbone == parent.backbone and recipe.distill.loop.lr == parent.distill.loop.lr
    for text, words in (
        (f'extends = "{path}"', "extends itself"), ('extends = "huge"', "no recipe 'huge'"),
        ("extends = 3", "extends is 3"), ('extends = "flux"\nrank = 8', "unknown key 'rank'"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(RecipeError, match=words):
            load_recipe(str(path))
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(str(path))


def test_learning_rate_warms_up_and_decays() -> None:
    flow = load_recipe("tiny").teacher.flow  # type: ignore[union-attr]
    rates = [rate(flow, i) for i in range(flow.iterations)]
    assert rates[0] < 0.02 and max(rates) == pytest.approx(1.0) and rates[-1] == pytest.approx(0.02, abs=1e-3)
    distill = load_recipe("flux").distill.loop
    assert distill.decay == "constant" and rate(distill, distill.iterations - 1) == 1.0
