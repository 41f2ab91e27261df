"""The tables of a recipe, each a frozen value that checks itself; a whole recipe is in :mod:`arcflow.recipe`."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from arcflow.errors import RecipeError

Settled = Literal["fp32", "bf16"]
"""What networks compute in."""


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

    polish: how the VAE's training goes on, if it does; vae_channels: those of each level of the VAE, each half as wide
    as the one before; latent_channels: of the VAE; pieces: how many of them CLIP's tokenizer knows; stored: what the
    teacher's weights are written in.
    """

    size: TransformerSize
    guidance_range: tuple[float, float]
    vae: LoopConfig
    flow: LoopConfig
    guidance: LoopConfig
    classifier: LoopConfig
    vae_channels: tuple[int, ...]
    latent_channels: int
    pieces: int
    polish: LoopConfig | None = None
    stored: Settled = "fp32"


@dataclass(frozen=True)
class StudentRecipe:
    """What is trained: LoRA of ``rank`` on the architecture's targets, the momentum head of ``modes``, norm_out.

    head_bias_std: random bias per mode and channel at the start; gamma_range: the K-1 log-spaced gammas at the start.
    gate_span: a span of noise level, in [0, 1]: the gate of a gamma above 1 starts at gamma^-gate_span of that of a
    straight line, so that over such a span no mode outgrows the others; 0: all gates start alike, as in the paper.
    """

    rank: int
    modes: int
    dropout: float = 0.05
    head_bias_std: float = 0.05
    gamma_range: tuple[float, float] = (0.2, 4.0)
    gate_span: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.modes < 1:
            raise RecipeError(f"rank is {self.rank} and modes {self.modes}: both must be 1 or more")
        if not 0.0 < self.gamma_range[0] <= self.gamma_range[1] or not 0.0 <= self.gate_span <= 1.0:
            raise RecipeError(
                f"gamma_range is {list(self.gamma_range)} and gate_span {self.gate_span}: the first needs two numbers "
                "above 0, the smaller first, the second is from 0 to 1"
            )

    def settings(self) -> dict[str, Any]:
        """All of it by name, for digests: without gate_span where it is unset, as before there was one."""
        return {name: value for name, value in asdict(self).items() if name != "gate_span" or value}


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
    several_nfe: numbers of evaluations of which one is drawn for each batch, so that one student serves them all;
    empty: ``nfe`` alone, which stays what the student is sampled with unless told otherwise.
    fp8_from: after that share of the iterations, in [0, 1), the linears that FP8 bundles quantise compute in FP8
    (:mod:`arcflow.training.fp8`), so that what is trained makes up for it; None: never.
    """

    loop: LoopConfig
    nfe: int = 2
    several_nfe: tuple[int, ...] = ()
    fp8_from: float | None = None
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
        if self.several_nfe and min(self.several_nfe) < 1:
            raise RecipeError(f"several_nfe is {list(self.several_nfe)}: each must be 1 or more")
        if self.fp8_from is not None and not 0.0 <= self.fp8_from < 1.0:
            raise RecipeError(f"fp8_from is {self.fp8_from}: it is a share of the iterations, from 0 to less than 1")
        if not self.prompts:
            raise RecipeError("prompts of [distill] names no list; leave it out for the default")
        _ = self.pixels

    @property
    def evaluations(self) -> tuple[int, ...]:
        """The numbers of evaluations that batches are trained for, each as often as the others."""
        return self.several_nfe or (self.nfe,)

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
class StudyRecipe:
    """The budget that every run of ``python -m arcflow.study`` has, and how its students are measured.

    iterations, batch: of each training; warm-up and the teacher's share are as much of it as of the recipe's own;
    seeds: trainings of each variant, from seed 0 on; noises: held-out noises that all students start from;
    diversity_prompts, diversity_noises: images of which it is asked how much they differ, so many of each prompt;
    look_every, look_noises: iterations between two points of the convergence curve, and the held-out noises that a
    point is measured on; ranks: LoRA's, beside the recipe's own; pieces: intervals of the piecewise head; mixture:
    Gaussians of the mixture head; several_nfe, fp8_from: as in [distill], for the variants that are trained so;
    full_rates: learning rates of full fine-tuning, in units of the recipe's own, which is LoRA's; gamma_range,
    gate_span: as in [student], for the variant of wide gammas.
    """

    iterations: int = 400
    batch: int = 8
    seeds: int = 3
    noises: int = 300
    diversity_prompts: int = 10
    diversity_noises: int = 8
    look_every: int = 20
    look_noises: int = 32
    ranks: tuple[int, ...] = (2, 16)
    pieces: int = 32
    mixture: int = 8
    several_nfe: tuple[int, ...] = (1, 2, 4)
    fp8_from: float = 0.7
    full_rates: tuple[float, ...] = (0.1, 0.03, 0.01)
    gamma_range: tuple[float, float] = (1e-3, 1e3)
    gate_span: float = 0.63

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "seeds", "diversity_prompts", "look_every", "look_noises"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} of [study] is {getattr(self, name)}: it must be 1 or more")
        for name in ("noises", "diversity_noises", "pieces", "mixture"):
            if getattr(self, name) < 2:
                raise RecipeError(f"{name} of [study] is {getattr(self, name)}: it must be 2 or more")
        for name in ("ranks", "several_nfe"):
            if min(getattr(self, name), default=0) < 1:
                raise RecipeError(f"{name} of [study] is {list(getattr(self, name))}: give numbers of 1 or more")
        if not (0.0 <= self.fp8_from < 1.0 and all(0.0 < rate <= 1.0 for rate in self.full_rates)):
            raise RecipeError("fp8_from of [study] must lie from 0 to less than 1, and full_rates above 0 and up to 1")
