"""Looks at a student while it is trained: held-out noise, the teacher's many steps beside the student's few."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arcflow.architectures.packing import unpack
from arcflow.pipelines.generation import save_image
from arcflow.pipelines.noise import image_noise
from arcflow.prompts.encodings import Encodings
from arcflow.prompts.lists import Prompts
from arcflow.recipe import Recipe
from arcflow.sampling import euler, integrate
from arcflow.schedule import sigmas
from arcflow.sources.base import Base
from arcflow.sources.digest import digest_of
from arcflow.sources.pipeline import open_vae
from arcflow.students import Student
from arcflow.training.batches import Batch, conditioned
from arcflow.training.loop import Look
from foundation.files import atomic_file

HELD_OUT = "held_out"
"""Figure: |student - teacher| / |teacher| of the images' latents, their mean."""

MOST_STEPS = 28
"""Of the teacher, at most: enough to see where it goes; a model of full size would take long for a hundred."""

REFERENCE = "reference.safetensors"
LOOKS = "looks"
_ENDS = "ends"


@dataclass
class Watch:
    """Looks at a student's images of a few prompts, from noise that is kept apart from training.

    student: on its device; prompts and encodings: of the same list; teacher: digest of the frozen teacher; workdir:
    keeps the teacher's endpoints, ``reference.safetensors``, and each look's grid, ``looks/000500.png``.

    A look changes nothing of a training: weights, modes and random state are as they were. Its noise is that of
    ``python -m arcflow.sample --seed``, from the recipe's first seed of the evaluation on.
    """

    recipe: Recipe
    base: Base
    student: Student
    prompts: Prompts
    encodings: Encodings
    teacher: str
    accelerator: Accelerator
    workdir: Path

    def look(self, done: int, weights: AbstractContextManager[None] | None = None) -> Look | None:
        """A look every ``watch_every`` iterations and at the end, otherwise None.

        done: iterations; weights: a context in which the student has the weights that are looked at. To be called in
        all processes: each runs the networks, the main one alone decodes, saves the grid and returns a look. The grid
        has a row a prompt, teacher and student beside each other. Raises BackboneError where the VAE cannot be read.
        """
        settings = self.recipe.distill
        if not settings.watch_every or (done % settings.watch_every and done != settings.loop.iterations):
            return None
        with self._left_alone(), weights or nullcontext(), torch.no_grad():
            reference = self._reference
            ends = torch.cat([self._student_end(image) for image in range(settings.watch_images)])
            if reference is None:
                return None
            error = (ends - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
            look = Look({HELD_OUT: float(error.mean())}, self._grid(reference, ends))
        self._save(done, look)
        return look

    @cached_property
    def _numbers(self) -> list[int]:
        """Those of the prompts: spread evenly over all of them."""
        count = self.recipe.distill.watch_images
        return [image * len(self.prompts) // count for image in range(count)]

    @cached_property
    def _batches(self) -> list[Batch]:
        """One an image, on the CPU: alone, an image takes the least memory."""
        guidance = self.recipe.guidance_kind, self.recipe.guidance
        found = self.encodings.get(self._numbers, tuple)
        return [conditioned(self.base.architecture, [each], self.encodings, guidance, self._tokens) for each in found]

    @property
    def _tokens(self) -> tuple[int, int]:
        """Rows and columns of image tokens, of the recipe's first size."""
        return self.base.grid(*self.recipe.distill.pixels[0])

    @property
    def _steps(self) -> int:
        return min(self.recipe.evaluate.reference_steps, MOST_STEPS)

    @property
    def _half(self) -> torch.autocast:
        """The networks' precision is that of training; the solver's is float32."""
        wanted = self.recipe.distill.loop.bf16
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16, enabled=wanted)

    def _noise(self, image: int) -> Tensor:
        rows, columns = self._tokens
        seed = self.recipe.evaluate.first_seed + image
        return image_noise(seed, rows * columns, self.student.packed_channels).to(self.accelerator.device)

    def _student_end(self, image: int) -> Tensor:
        """Where the student's evaluations lead, [1, S, C] on the CPU."""
        settings, condition = self.recipe.distill, self._batches[image].condition.to(self.accelerator.device)

        def evaluate(x: Tensor, sigma: Tensor) -> Any:
            with self._half:
                return self.student(x, sigma, condition)

        levels = sigmas(settings.nfe, self.recipe.shift, settings.final_step_ratio)
        return integrate(evaluate, self._noise(image), levels).cpu()

    def _teacher_end(self, image: int) -> Tensor:
        """Where the teacher's steps lead, [1, S, C] on the CPU."""
        batch = self._batches[image]
        condition = batch.condition.to(self.accelerator.device)

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            with self._half:
                return self.student.teacher_velocity(x, sigma, condition, batch.guidance)

        return euler(velocity, self._noise(image), sigmas(self._steps, self.recipe.shift)).cpu()

    @cached_property
    def _reference(self) -> Tensor | None:
        """The teacher's endpoints [N, S, C], of the main process alone; all compute them where it has none."""
        path, main = self.workdir / REFERENCE, self.accelerator.is_main_process
        key = self._key() if main else ""
        found = _read(path, key) if main else None
        (there,) = broadcast_object_list([found is not None])
        if there:
            return found
        ends = torch.cat([self._teacher_end(image) for image in range(self.recipe.distill.watch_images)])
        if not main:
            return None
        with atomic_file(path) as temporary:
            save_file({_ENDS: ends}, temporary, metadata={"key": key})
        return ends

    def _key(self) -> str:
        """Digest of all that the reference depends on."""
        recipe = self.recipe
        known = {
            "teacher": self.teacher,
            "architecture": recipe.architecture,
            "schedule": [recipe.shift, self._steps],
            "guidance": recipe.guidance,
            "seed": recipe.evaluate.first_seed,
            "tokens": self._tokens,
            "computed in": [recipe.distill.frozen, recipe.distill.loop.precision],
            "prompts": [digest_of(encoding) for encoding in self.encodings.get(self._numbers, tuple)],
        }
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    def _grid(self, *columns: Tensor) -> NDArray[np.uint8]:
        """The images of latents [N, S, C], each argument a column: uint8 [N*H, columns*W, 3]."""
        device = self.accelerator.device
        dtype = torch.float32 if self.recipe.distill.frozen == "fp32" else torch.bfloat16
        vae = open_vae(self.base.folder, dtype, device)
        latents = [unpack(column, *self._tokens).to(device, dtype) for column in columns]
        rows = []
        for row in zip(*latents, strict=True):
            images = [self.base.architecture.decode(vae, each[None])[0].float().cpu() for each in row]
            rows.append(torch.cat(images, dim=2))
        del vae
        if device.type == "cuda":
            torch.cuda.empty_cache()
        grid = (torch.cat(rows, dim=1) * 0.5 + 0.5).clamp(0, 1)
        return np.asarray((grid * 255).round().byte().permute(1, 2, 0).contiguous())

    def _save(self, done: int, look: Look) -> None:
        if look.grid is None:
            return
        about = {
            "prompts": [self.prompts[number] for number in self._numbers],
            "seed": self.recipe.evaluate.first_seed,
            "teacher_steps": self._steps,
        }
        settings = {**about, "iteration": done, **look.figures}
        save_image(Image.fromarray(look.grid), settings, self.workdir / LOOKS / f"{done:06d}.png")

    @contextmanager
    def _left_alone(self) -> Iterator[None]:
        """The student evaluates, without dropout, and is trained on afterwards as if nothing had been."""
        device, was = self.accelerator.device, self.student.training
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self.student.eval()
            try:
                yield
            finally:
                self.student.train(was)


def _read(path: Path, key: str) -> Tensor | None:
    """The endpoints in a file, if they are those that are wanted."""
    try:
        with safe_open(path, framework="pt") as handle:
            return handle.get_tensor(_ENDS) if (handle.metadata() or {}).get("key") == key else None
    except (SafetensorError, OSError):
        return None
