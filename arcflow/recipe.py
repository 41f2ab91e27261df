"""Recipes: everything that a training run depends on, as typed data read from TOML."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from arcflow.errors import RecipeError
from arcflow.recipes.parts import DistillRecipe as DistillRecipe
from arcflow.recipes.parts import EvaluateRecipe as EvaluateRecipe
from arcflow.recipes.parts import LoopConfig as LoopConfig
from arcflow.recipes.parts import Settled as Settled
from arcflow.recipes.parts import StudentRecipe as StudentRecipe
from arcflow.recipes.parts import StudyRecipe as StudyRecipe
from arcflow.recipes.parts import TeacherRecipe as TeacherRecipe
from arcflow.recipes.parts import TransformerSize as TransformerSize
from foundation.cli import ArgumentParser

if TYPE_CHECKING:
    from collections.abc import Mapping

RECIPES = Path(__file__).parent / "recipes"
GUIDANCE_KINDS = {"flux": "embedded", "qwen": "cfg"}
"""How the teacher of each architecture is guided."""


@dataclass(frozen=True)
class Recipe:
    """One model from teacher to evaluation.

    shift: the student's and the reference teacher's; guidance: the teacher's, an input of the backbone
    (guidance_kind "embedded": FLUX) or the scale of classifier-free guidance ("cfg": Qwen-Image).
    The teacher is trained by [teacher], or else downloaded: base is then its hub id, and backbone the diffusers
    configuration of its transformer.
    """

    name: str
    architecture: Literal["flux", "qwen"]
    shift: float
    guidance: float
    student: StudentRecipe
    distill: DistillRecipe
    guidance_kind: Literal["embedded", "cfg"] = "embedded"
    base: str | None = None
    backbone: dict[str, Any] | None = None
    teacher: TeacherRecipe | None = None
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)
    study: StudyRecipe = field(default_factory=StudyRecipe)

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise RecipeError(f"shift is {self.shift}: it must be positive")
        if not self.distill.sizes:
            raise RecipeError('[distill] names no size of image; write sizes = ["1024x1024"], or several')
        kind = GUIDANCE_KINDS[self.architecture]
        if self.guidance_kind != kind:
            raise RecipeError(f"guidance_kind is {self.guidance_kind!r}: it must be {kind!r} for {self.architecture}")
        if (self.teacher is None) == (self.backbone is None):
            raise RecipeError("give either [teacher], to train one, or [backbone], that of a downloaded teacher")
        if self.teacher is not None and self.architecture != "flux":
            raise RecipeError("[teacher] trains a small FLUX; with another architecture give [backbone]")


def add_recipe_options(parser: ArgumentParser, *more: str) -> None:
    """Add ``--recipe``, and of ``--workdir`` and ``--data`` those that are named."""
    add = parser.add_argument
    add("--recipe", default="tiny", help="name in arcflow/recipes or path of a .toml (default: tiny)")
    helps = {
        "--workdir": "where the run keeps its state (default: .work/RECIPE)",
        "--data": "folder of the images that make data fetches (default: found by itself)",
    }
    for option in more:
        add(option, type=Path, help=helps[option])


def own_teacher(recipe: Recipe) -> TeacherRecipe:
    """How the recipe's teacher is trained. Raises RecipeError where it is downloaded instead."""
    if recipe.teacher is None:
        raise RecipeError(
            f"recipe {recipe.name!r} has no [teacher]: its teacher is downloaded, and this command is for teachers "
            "that are trained here; choose such a recipe (tiny)"
        )
    return recipe.teacher


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of that name in ``arcflow/recipes``, or in the TOML file of that path. Raises RecipeError.

    A recipe may start from another: ``extends = "flux"`` takes everything of that one which it does not set itself.
    """
    path = _find(name_or_path)
    try:
        return parse_recipe(_read(path))
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def _find(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise RecipeError(f"no recipe {name_or_path!r}: choose one of {known}, or give the path of a .toml file")
    return path


def _read(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The data of a recipe file over that of the recipe which it extends."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"not valid TOML: {error}") from error
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror or error}") from error
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if not isinstance(parent, str):
        raise RecipeError(f"extends is {parent!r}: it must be the name or the path of a recipe")
    if path.resolve() in below:
        raise RecipeError("the recipe extends itself; take out one extends")
    return _over(_read(_find(parent), (*below, path.resolve())), data)


def _over(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``under`` with the values of ``over``, table by table."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(merged[key], value) if both else value
    return merged


def parse_recipe(data: Mapping[str, object]) -> Recipe:
    """A recipe from plain data; unknown keys and wrong types are errors. Raises RecipeError."""
    unknown = _unknown_keys(data, Recipe, "")
    if unknown:
        where = "arcflow/recipe.py and arcflow/recipes/parts.py"
        raise RecipeError(f"unknown key {unknown[0]!r}; check its spelling against {where}")
    try:
        return msgspec.convert(data, Recipe)
    except (msgspec.ValidationError, RecipeError) as error:
        raise RecipeError(str(error)) from error


def _unknown_keys(data: object, kind: object, prefix: str) -> list[str]:
    """Keys that no field of the dataclass ``kind`` has (msgspec itself ignores them in dataclasses)."""
    import dataclasses
    import typing

    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(data, dict):
        hints = typing.get_type_hints(kind)
        found: list[str] = []
        for key, value in data.items():
            if key not in hints:
                found.append(prefix + key)
                continue
            options = typing.get_args(hints[key]) or (hints[key],)
            for option in options:
                found += _unknown_keys(value, option, f"{prefix}{key}.")
        return found
    return []
