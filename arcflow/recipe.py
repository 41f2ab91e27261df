"""Recipes: everything that a training run depends on, as typed data read from TOML."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from arcflow.errors import RecipeError
from foundation.cli import ArgumentParser

if TYPE_CHECKING:
    from collections.abc import Mapping

RECIPES = Path(__file__).parent / "recipes"
Settled = Literal["fp32", "bf16"]
"""What networks compute in."""
GUIDANCE_KINDS = {"flux": "embedded", "qwen": "cfg"}
"""How the teacher of each architecture is guided."""


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train.

    iterations > 0; batch: images an iteration, of all processes together; micro_batch: how many of them a process takes
    at once (None: its whole share); lr > 0 (peak); warmup in iterations; decay: what lr does after the warm-up
    ("constant" or "cosine", to 2 % of the peak); optimizer: AdamW, its moments in float32 or in 8 bits; clip: bound of
    the gradient's norm, from iteration clip_from on; ema_gamma: exponent of the Karras power average of the weights, or
    None for none; until iteration ema_from it copies the weights; precision: what networks compute in, or "auto" for
    what is faster where the run begins; save_every: iterations between checkpoints.
    """

    iterations: int
    batch: int
    lr: float
    micro_batch: int | None = None
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup: int = 100
    decay: Literal["constant", "cosine"] = "constant"
    clip: float = 50.0
    clip_from: int = 0
    ema_gamma: float | None = None
    ema_from: int = 0
    precision: Settled | Literal["auto"] = "fp32"
    seed: int = 0
    save_every: int = 200

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise RecipeError(f"micro_batch is {self.micro_batch}: it must be 1 or more")
        if not 0 < self.lr < 1:
            raise RecipeError(f"lr is {self.lr}: it must lie between 0 and 1")
        if min(self.warmup, self.clip_from, self.ema_from) < 0 or not self.clip > 0:
            raise RecipeError("warmup, clip_from and ema_from must be 0 or more, and clip positive")

    @property
    def bf16(self) -> bool:
        """Whether networks compute in bfloat16.

        Raises RecipeError where that is not decided yet, as :func:`arcflow.training.precision.settle` does.
        """
        if self.precision == "auto":
            raise RecipeError(
                'precision is "auto": what to compute in is decided when training begins; write "bf16" or "fp32"'
            )
        return self.precision == "bf16"


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
    """How the embedded teacher is made: VAE, flow matching, guidance distillation, and the judge's classifier.

    images: what it draws; polish: how the VAE's training goes on, if it does; vae_channels: those of each level of the
    VAE, each half as wide as the one before; latent_channels: of the VAE; pieces: how many of them CLIP's tokenizer
    knows; stored: what the teacher's weights are written in.
    """

    size: TransformerSize
    guidance_range: tuple[float, float]
    vae: LoopConfig
    flow: LoopConfig
    guidance: LoopConfig
    classifier: LoopConfig
    images: Literal["fashion", "emoji"] = "fashion"
    vae_channels: tuple[int, ...] = (32, 64, 64)
    latent_channels: int = 4
    pieces: int = 800
    polish: LoopConfig | None = None
    stored: Settled = "fp32"


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
    """Data-free trajectory distillation (method: docs in :mod:`arcflow.training.distillation`).

    nfe: segments; intermediate_states: points of each segment at which the field is regressed to the teacher;
    teacher_share_iterations: the teacher's share of the mixed trajectory falls from 1 to 0 over these;
    substeps: raw time 1 in small steps, a whole number of them a segment; window, local_below: how many of them are
    added to the teacher's interval for the mean velocity, and the interval under which the local velocity is used;
    mode_dropout: share of modes dropped from the detached policy; frozen: what the weights are kept in that are not
    trained ("fp8": E4M3 with a scale a row, computed with in bf16); checkpointing: whether each block is run again in
    the backward instead of keeping what it made; compile: whether torch compiles the blocks; prompts: lists by name or
    path; text_tokens: the longest prompt; sizes: of the images, "WIDTHxHEIGHT" in pixels, one of them a batch;
    watch_every: iterations between looks at held-out noise (its error and a grid of images), 0 for none; watch_images:
    how many images are looked at.
    """

    loop: LoopConfig
    nfe: int = 2
    final_step_ratio: float = 1.0
    intermediate_states: int = 4
    teacher_share_iterations: int = 2000
    substeps: int = 128
    window: float = 3.0
    local_below: float = 2.0
    mode_dropout: float = 0.1
    loss_scale: float = 30.0
    gamma_lr: float = 0.1
    frozen: Literal["fp32", "bf16", "fp8"] = "fp32"
    checkpointing: bool = False
    compile: bool = False
    prompts: tuple[str, ...] = ("default",)
    text_tokens: int = 512
    sizes: tuple[str, ...] = ()
    watch_every: int = 0
    watch_images: int = 4

    def __post_init__(self) -> None:
        if self.frozen != "fp32" and self.loop.precision != "bf16":
            raise RecipeError(f'frozen is "{self.frozen}": the precision of [distill] loop must then be "bf16"')
        if self.substeps < 1 or min(self.window, self.local_below, self.watch_every) < 0 or self.watch_images < 1:
            raise RecipeError(
                "substeps and watch_images must be 1 or more, window, local_below and watch_every 0 or more"
            )
        if self.text_tokens < 1:
            raise RecipeError(f"text_tokens is {self.text_tokens}: it must be 1 or more")
        if not self.prompts:
            raise RecipeError("prompts of [distill] names no list; leave it out for the default")
        _ = self.pixels

    @property
    def pixels(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each size."""
        found = [re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size, re.ASCII) for size in self.sizes]
        if None in found:
            wrong = self.sizes[found.index(None)]
            raise RecipeError(f"the size {wrong!r} is not understood: write WIDTHxHEIGHT in pixels, such as 1024x1024")
        return tuple((int(match[1]), int(match[2])) for match in found if match)


@dataclass(frozen=True)
class EvaluateRecipe:
    """What is measured: ``seeds`` images per NFE, the reference's Euler steps, the NFE compared."""

    seeds: int = 300
    reference_steps: int = 100
    nfe: tuple[int, ...] = (1, 2, 4)
    first_seed: int = 1_000_000


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
        "--data": "folder of the Fashion-MNIST .gz files (default: found by itself)",
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
