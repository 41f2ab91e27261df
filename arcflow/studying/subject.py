"""What a study is made on: one teacher, held-out noises and prompts that are the same for all, and who judges."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from arcflow.architectures.conditioning import ConditioningDtype, trained_in
from arcflow.architectures.packing import unpack
from arcflow.evaluation.samplers import Advance, Run, Sampled, chunks, sampled
from arcflow.pipelines.noise import image_noise
from arcflow.prompts.lists import Prompts, digest
from arcflow.recipe import Recipe, Settled
from arcflow.sampling import sample_student, sample_teacher
from arcflow.schedule import sigmas
from arcflow.sources.base import Base
from arcflow.sources.pipeline import open_vae
from arcflow.sources.text import TextEncoders
from arcflow.studying.variants import Variant
from arcflow.tiny.judging import Judge
from foundation.files import sha256_tree

BANDS = 10
"""Parts of raw time in which errors are told apart."""
_APART = 1 << 24
"""Between the first seeds of two sets of noises: no set has as many."""
_FORMAT = 1
"""To be raised where figures come to mean something else: records of before are then made anew."""
_FREE = ("seeds", "ranks", "pieces", "mixture", "fp8_from", "full_rates", "gamma_range", "gate_span")
"""Settings of [study] that choose variants, whose own settings say the rest."""


@dataclass(frozen=True)
class Starts:
    """Where images start: noise [N, S, C], and the architecture's condition of N prompts."""

    noise: Tensor
    condition: Any


@dataclass(frozen=True)
class Subject:
    """The teacher and all that is the same for every variant.

    prompts: those of training; precision: what networks compute in while they are trained; figures are made in float32.
    """

    recipe: Recipe
    base: Base
    prompts: Prompts
    judge: Judge
    precision: Settled

    @cached_property
    def held_out(self) -> Starts:
        """What figures are made of: a noise for each of the judge's prompts."""
        return self._starts(0, self.judge.prompts)

    @cached_property
    def diverse(self) -> Starts:
        """Several noises of each of a few prompts, those of one prompt beside each other."""
        texts, wanted = list(dict.fromkeys(self.judge.prompts)), self.recipe.study
        count = min(wanted.diversity_prompts, len(texts))
        few = [texts[number * len(texts) // count] for number in range(count)]
        return self._starts(1, [text for text in few for _ in range(wanted.diversity_noises)])

    @cached_property
    def looked_at(self) -> Starts:
        """What a point of the convergence curve is measured on: prompts spread over all of the judge's."""
        texts, count = self.judge.prompts, self.recipe.study.look_noises
        return self._starts(2, [texts[number * len(texts) // count] for number in range(count)])

    @property
    def levels(self) -> tuple[float, ...]:
        """Ends of the bands, from noise level 1 to 0: levels of the teacher's own steps, where its states are known."""
        grid = sigmas(self.recipe.evaluate.reference_steps, self.recipe.shift)
        last = len(grid) - 1
        return tuple(dict.fromkeys(grid[number * last // BANDS] for number in range(BANDS + 1)))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.base.grid(*self.recipe.distill.pixels[0])

    @property
    def trained(self) -> ConditioningDtype:
        """What rounded noise levels in training."""
        return trained_in(self.precision == "bf16")

    def student(self, backbone: Any, nfe: int) -> Run:
        """A sampler of a student's backbone by so many evaluations."""
        return partial(
            sample_student, self.base.architecture, backbone, nfe=nfe, shift=self.recipe.shift, levels=self.levels,
            final_step_ratio=self.recipe.distill.final_step_ratio, trained=self.trained,
        )  # fmt: skip

    def teacher(self, backbone: Any, steps: int) -> Run:
        """A sampler of the teacher's backbone by so many Euler steps."""
        shift = self.recipe.shift
        return partial(sample_teacher, self.base.architecture, backbone, steps=steps, shift=shift, trained=self.trained)

    def sample(self, run: Run, starts: Starts, name: str, advance: Advance) -> Sampled:
        """Run a sampler from all starts in bounded memory; states are kept at :attr:`levels` alone."""
        return sampled(run, starts.noise, starts.condition, name, advance, self.levels)

    @torch.no_grad()
    def images(self, x: Tensor) -> Tensor:
        """The images [N, 3, H, W] in [-1, 1] of packed latents [N, S, C]."""
        parts = [self._decode(unpack(x[rows], *self.grid)) for rows in chunks(len(x))]
        return torch.cat(parts).float().clamp(-1.0, 1.0)

    @torch.no_grad()
    def judged(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The judge's logits and features of images."""
        parts = [self.judge.classify(images[rows]) for rows in chunks(len(images))]
        return torch.cat([logits for logits, _ in parts]), torch.cat([features for _, features in parts])

    @cached_property
    def _text(self) -> TextEncoders:
        return TextEncoders(self.base, self.recipe.distill.text_tokens, torch.float32, torch.device("cpu"))

    @cached_property
    def _vae(self) -> Any:
        return open_vae(self.base.folder, torch.float32, torch.device("cpu"))

    def _decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.base.architecture.decode(self._vae, latents)
        return images

    def _starts(self, number: int, texts: Sequence[str]) -> Starts:
        rows, columns = self.grid
        first, channels = self.recipe.evaluate.first_seed + number * _APART, int(self.base.config["in_channels"])
        noise = torch.cat([image_noise(first + i, rows * columns, channels) for i in range(len(texts))])
        distinct = list(dict.fromkeys(texts))
        encoded = dict(zip(distinct, self._text.encode(distinct), strict=True))
        found = [encoded[one] for one in texts]
        return Starts(noise, self.base.architecture.condition(found, self.recipe.guidance, rows, columns))

    @cached_property
    def _digest(self) -> dict[str, Any]:
        recipe = self.recipe
        study = {name: value for name, value in asdict(recipe.study).items() if name not in _FREE}
        return {
            "format": _FORMAT,
            "teacher": sha256_tree(self.base.folder),
            "prompts": [digest(self.prompts), digest(self.judge.prompts)],
            "judge": hashlib.sha256(self.judge.reals.numpy().tobytes()).hexdigest(),
            "recipe": [recipe.architecture, recipe.shift, recipe.guidance, asdict(recipe.evaluate), study],
            "sizes": [recipe.distill.sizes[:1], recipe.distill.text_tokens],
            "precision": self.precision,
        }

    def key(self, variant: Variant | None = None, seed: int = 0) -> str:
        """Digest of all that a run depends on; without a variant of what the teacher's own figures depend on."""
        own = None
        if variant is not None:
            own = {**asdict(variant), "student": variant.student.settings(), "name": "", "about": ""}
        known = {**self._digest, "variant": own, "seed": seed}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]
