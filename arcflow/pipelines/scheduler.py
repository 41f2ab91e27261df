"""The scheduler of a student in a diffusers pipeline: the method's noise levels, and the closed form between them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from arcflow.architectures.conditioning import TIME_SCALE, ConditioningDtype
from arcflow.errors import PipelineError, RecipeError
from arcflow.field import MomentumField, displacement
from arcflow.policy import CONDITIONING_DTYPE, FINAL_STEP_RATIO, NFE, SHIFT
from arcflow.schedule import sigmas as noise_levels

_MANY = 4
"""More than so many times the student's own number of evaluations is a pipeline's default, not a wish."""


class ArcFlowScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Takes the momentum field that a student's transformer returns, and moves the latents in closed form.

    shift, nfe, final_step_ratio, conditioning_dtype, guidance: as in :class:`arcflow.policy.Policy`.
    ``sigmas`` (after ``set_timesteps``): float32 [steps + 1], falling from 1 to 0, exact. ``timesteps``: float32
    [steps], a thousand times the levels at which the transformer is evaluated, these rounded to conditioning_dtype:
    a pipeline in bfloat16 rounds times on their way, and moves fewer of them that way. The student's transformer makes
    of them what its family saw in training.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        shift: float = SHIFT,
        nfe: int = NFE,
        final_step_ratio: float = FINAL_STEP_RATIO,
        conditioning_dtype: ConditioningDtype = CONDITIONING_DTYPE,
        guidance: float | None = None,
    ) -> None:
        self._step: int | None = None
        self._begin: int | None = None
        self._set(nfe, None)

    @property
    def step_index(self) -> int | None:
        """The step that comes next; None before the first."""
        return self._step

    @property
    def begin_index(self) -> int | None:
        """The step at which the pipeline begins; None where it has not said so."""
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at that step, as image-to-image does."""
        self._begin = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """The method's noise levels for that many evaluations (default: the student's own number).

        sigmas: pipelines pass an even row of levels, of which the number counts and nothing else; mu: their shift by
        size, which students do not have. Raises PipelineError for other sigmas, and fewer than 1 evaluation.
        """
        if sigmas is not None:
            steps = len(sigmas)
            if not np.allclose(np.asarray(sigmas, dtype=np.float64), np.linspace(1.0, 1.0 / max(steps, 1), steps)):
                raise PipelineError(
                    "a student has its own noise levels: leave out sigmas, and give num_inference_steps instead"
                )
        else:
            steps = self.config.nfe if num_inference_steps is None else num_inference_steps
        if steps > _MANY * self.config.nfe:
            warnings.warn(
                f"{steps} evaluations of a student that is meant for {self.config.nfe}: "
                f"pass num_inference_steps={self.config.nfe}",
                stacklevel=2,
            )
        self._set(steps, device)

    def _set(self, steps: int, device: str | torch.device | None) -> None:
        try:
            self._levels = noise_levels(steps, self.config.shift, self.config.final_step_ratio)
        except RecipeError as error:
            raise PipelineError(str(error)) from error
        self.num_inference_steps = steps
        self.sigmas = torch.tensor(self._levels, dtype=torch.float32)
        fed = self.sigmas[:-1].to(getattr(torch, self.config.conditioning_dtype)).float()
        self.timesteps = (fed * TIME_SCALE).to(device)
        self._step = self._begin = None

    def step(
        self,
        model_output: MomentumField,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
        **_: Any,
    ) -> SchedulerOutput | tuple[Tensor]:
        """From packed latents ``sample`` [B, S, C] at this step's noise level to the next, without an evaluation.

        model_output: the field that the transformer predicted at this level. Computed in float32, returned in the
        dtype of ``sample``. Raises PipelineError for a velocity, which a teacher's transformer returns.
        """
        if not isinstance(model_output, MomentumField):
            raise PipelineError(
                "the transformer returned no momentum field: this scheduler is for students; "
                "call load_student(pipe, adapter), or put the pipeline's own scheduler back"
            )
        if self._step is None:
            self._step = self._index(timestep) if self._begin is None else self._begin
        if self._step >= self.num_inference_steps:
            raise PipelineError("all steps are done: call set_timesteps before the next image")
        start, end = self._levels[self._step], self._levels[self._step + 1]
        moved = sample.float() + displacement(model_output, start, start, end)
        self._step += 1
        there = moved.to(sample.dtype)
        return SchedulerOutput(prev_sample=there) if return_dict else (there,)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """``sample`` [B, ...] with ``noise`` mixed in, up to the noise level of ``timestep`` ([B] or [1]).

        (1 - sigma) * sample + sigma * noise, in the dtype of ``sample``: what image-to-image and inpainting begin with.
        """
        levels = [self._levels[self._index(t)] for t in timestep.reshape(-1)]
        sigma = torch.tensor(levels, dtype=torch.float32, device=sample.device)
        sigma = sigma.reshape(-1, *(1,) * (sample.ndim - 1))
        return ((1.0 - sigma) * sample.float() + sigma * noise.float()).to(sample.dtype)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:
        """The latents as they are: nothing is scaled."""
        return sample

    def __len__(self) -> int:
        return int(TIME_SCALE)

    def _index(self, timestep: float | Tensor) -> int:
        """The step whose time is nearest: a pipeline in half precision may have rounded it."""
        return int((self.timesteps - torch.as_tensor(timestep, device=self.timesteps.device)).abs().argmin())
