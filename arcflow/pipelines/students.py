"""diffusers' own transformers with a momentum head, as classes that a pipeline saves and opens by name.

diffusers opens a component of ``model_index.json`` by its module and class, and looks in that module for the base class
that says how: this is why ``ModelMixin`` is here.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from diffusers import ModelMixin as ModelMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from arcflow.architectures import flux, qwen
from arcflow.architectures.conditioning import ConditioningDtype
from arcflow.architectures.head import MomentumHead
from arcflow.errors import PipelineError
from arcflow.field import MomentumField
from arcflow.students import architecture


@torch.library.custom_op("arcflow::as_trained", mutates_args=())
def _as_trained(values: Tensor, family: str, trained: str) -> Tensor:
    """``as_trained`` of that family, float32: an operator, for torch.compile drops roundings between those it fuses."""
    rounded: Tensor = architecture(family).as_trained(values.float(), trained)
    return rounded.clone()


@_as_trained.register_fake
def _(values: Tensor, family: str, trained: str) -> Tensor:
    return torch.empty_like(values, dtype=torch.float32)


class StudentField(MomentumField):
    """A momentum field on its way through a pipeline to the scheduler, in the place of a velocity.

    Pipelines that evaluate with and without a prompt subtract velocities. That is not defined for fields: a student has
    its guidance built in, or as an input. Raises PipelineError then.
    """

    def __sub__(self, other: object) -> Tensor:
        raise PipelineError(
            "a student takes no negative prompt: its guidance is built in (Qwen-Image) or an input (FLUX, "
            "guidance_scale); leave out negative_prompt and true_cfg_scale"
        )


class FluxStudent(FluxTransformer2DModel):  # type: ignore[misc]
    """FLUX's transformer that returns a :class:`StudentField`; weights not set.

    modes: K of the momentum head; conditioning_dtype: what rounded noise level and guidance in training
    (:class:`arcflow.policy.Policy`); the rest: the configuration of ``FluxTransformer2DModel``.
    """

    def __init__(self, modes: int = 16, conditioning_dtype: ConditioningDtype = "bfloat16", **backbone: Any) -> None:
        super().__init__(**backbone)
        _take_head(self, modes, conditioning_dtype)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        timestep: Tensor,
        guidance: Tensor | None = None,
        return_dict: bool = True,
        **inputs: Any,
    ) -> tuple[StudentField] | Transformer2DModelOutput:
        """diffusers' own forward (timestep: noise level [B] in [0, 1]; guidance [B]), conditioned as in training."""
        trained = self.config.conditioning_dtype
        inputs["timestep"] = _as_trained(timestep, flux.NAME, trained)
        inputs["guidance"] = None if guidance is None else _as_trained(guidance, flux.NAME, trained)
        return _as_asked(super().forward(hidden_states, return_dict=False, **inputs)[0], return_dict)


class QwenStudent(QwenImageTransformer2DModel):  # type: ignore[misc]
    """Qwen-Image's transformer that returns a :class:`StudentField`; weights not set. See :class:`FluxStudent`."""

    def __init__(self, modes: int = 16, conditioning_dtype: ConditioningDtype = "bfloat16", **backbone: Any) -> None:
        super().__init__(**backbone)
        _take_head(self, modes, conditioning_dtype)

    def forward(
        self, hidden_states: Tensor, *, timestep: Tensor, return_dict: bool = True, **inputs: Any
    ) -> tuple[StudentField] | Transformer2DModelOutput:
        """diffusers' own forward (timestep: noise level [B] in [0, 1]), conditioned as in training."""
        inputs["timestep"] = _as_trained(timestep, qwen.NAME, self.config.conditioning_dtype)
        return _as_asked(super().forward(hidden_states, return_dict=False, **inputs)[0], return_dict)


STUDENTS: dict[str, type[nn.Module]] = {flux.NAME: FluxStudent, qwen.NAME: QwenStudent}
"""The class of each architecture's students."""


def _take_head(student: Any, modes: int, conditioning_dtype: ConditioningDtype) -> None:
    linear = student.proj_out
    student.proj_out = MomentumHead(linear.in_features, linear.out_features, modes)
    student.register_to_config(modes=modes, conditioning_dtype=conditioning_dtype)


def _as_asked(field: MomentumField, return_dict: bool) -> tuple[StudentField] | Transformer2DModelOutput:
    there = StudentField(field.means, field.logweights, field.loggammas)
    return Transformer2DModelOutput(sample=there) if return_dict else (there,)


def _declare(student: type[nn.Module]) -> None:
    """Give the constructor the parameters of diffusers' class: they say which entries of a configuration are passed."""
    init: Any = student.__init__
    own = [p for p in inspect.signature(init).parameters.values() if p.kind is not p.VAR_KEYWORD]
    base = inspect.signature(student.__mro__[1].__init__)  # type: ignore[misc]
    theirs = [p for name, p in base.parameters.items() if name != "self"]
    init.__signature__ = inspect.Signature([*own, *theirs])


for _student in STUDENTS.values():
    _declare(_student)
