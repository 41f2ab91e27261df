"""Recipes: everything that a training run depends on, as typed data read from TOML."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from arcflow.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train.

    iterations > 0; lr > 0 (peak); warmup in iterations; decay: what lr does after the warm-up ("constant" or
    "cosine", to 2 % of the peak); clip: bound of the gradient's norm; ema_gamma: exponent of the Karras power
    average of the weights, or None for none; save_every: iterations between checkpoints.
    """

    iterations: int
    batch: int
    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup: int = 100
    decay: Literal["constant", "cosine"] = "constant"
    clip: float = 50.0
    ema_gamma: float | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    save_every: int = 200

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if not 0 < self.lr < 1:
            raise RecipeError(f"lr is {self.lr}: it must lie between 0 and 1")
        if self.warmup < 0 or not self.clip > 0:
            raise RecipeError("warmup must be 0 or more, and clip positive")


@dataclass(frozen=True)
class TransformerSize:
    """Size of a FLUX transformer: heads x head_dim is its width; the rope axes sum to head_dim."""

    heads: int
    head_dim: int
    double_blocks: int
    single_blocks: int
    rope: tuple[int, int, int]

    def __post_init__(self) -> None:
        if sum(self.rope) != self.head_dim:
            raise RecipeError(f"the rope axes {self.rope} must sum to head_dim = {self.head_dim}")


@dataclass(frozen=True)
class TeacherRecipe:
    """How the embedded teacher is made: VAE, flow matching, guidance distillation, and the judge's classifier."""

    size: TransformerSize
    guidance_range: tuple[float, float]
    vae: LoopConfig
    flow: LoopConfig
    guidance: LoopConfig
    classifier: LoopConfig


@dataclass(frozen=True)
class StudentRecipe:
    """What is trained: LoRA of ``rank`` on the architecture's targets, the momentum head of ``modes``, norm_out.

    head_bias_std: random bias per mode and channel at the start; gamma_range: the K-1 log-spaced gammas at the start.
    """

    rank: int
    modes: int
    dropout: float = 0.05
    head_bias_std: float = 0.05
    gamma_range: tuple[float, float] = (0.2, 4.0)

    def __post_init__(self) -> None:
        if self.rank < 1 or self.modes < 1:
            raise RecipeError(f"rank is {self.rank} and modes {self.modes}: both must be 1 or more")


@dataclass(frozen=True)
class DistillRecipe:
    """Data-free trajectory distillation (method: docs in :mod:`arcflow.distillation`).

    nfe: segments; intermediate_states: points of each segment at which the field is regressed to the teacher;
    teacher_share_iterations: the teacher's share of the mixed trajectory falls from 1 to 0 over these;
    window, local_below: raw time added to the teacher's interval for the mean velocity, and the interval under which
    the local velocity is used; mode_dropout: share of modes dropped from the detached policy.
    """

    loop: LoopConfig
    nfe: int = 2
    final_step_ratio: float = 1.0
    intermediate_states: int = 4
    teacher_share_iterations: int = 2000
    window: float = 3 / 128
    local_below: float = 2 / 128
    mode_dropout: float = 0.1
    loss_scale: float = 30.0
    gamma_lr: float = 0.1


@dataclass(frozen=True)
class EvaluateRecipe:
    """What is measured: ``seeds`` pictures per NFE, the reference's Euler steps, the NFE compared."""

    seeds: int = 300
    reference_steps: int = 100
    nfe: tuple[int, ...] = (1, 2, 4)
    first_seed: int = 1_000_000


@dataclass(frozen=True)
class Recipe:
    """One model from teacher to evaluation. shift and guidance are the student's and the reference teacher's."""

    name: str
    architecture: Literal["flux"]
    shift: float
    guidance: float
    student: StudentRecipe
    distill: DistillRecipe
    teacher: TeacherRecipe | None = None
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise RecipeError(f"shift is {self.shift}: it must be positive")


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of that name in ``arcflow/recipes``, or in the TOML file of that path. Raises RecipeError."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise RecipeError(f"no recipe {name_or_path!r}: choose one of {known}, or give the path of a .toml file")
    try:
        return parse_recipe(tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def parse_recipe(data: Mapping[str, object]) -> Recipe:
    """A recipe from plain data; unknown keys and wrong types are errors. Raises RecipeError."""
    unknown = _unknown_keys(data, Recipe, "")
    if unknown:
        raise RecipeError(f"unknown key {unknown[0]!r}; check its spelling against arcflow/recipe.py")
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
