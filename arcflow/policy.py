"""How a student is meant to be sampled, and where an adapter says so."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from arcflow.architectures.conditioning import ConditioningDtype, trained_in
from arcflow.errors import AdapterError

if TYPE_CHECKING:
    from arcflow.recipe import Recipe

METADATA_KEY = "policy_config"
"""Key of the weights file's metadata that holds the policy as JSON."""
KIND = "ArcFlow"
"""The ``type`` that released policies carry."""

SHIFT, NFE, FINAL_STEP_RATIO = 3.2, 2, 1.0
CONDITIONING_DTYPE: ConditioningDtype = "bfloat16"
"""What the published students were distilled and are sampled with; their files do not say it."""
_FIELDS = {
    "shift": "shift",
    "guidance": "guidance",
    "nfe": "nfe",
    "final_step_ratio": "final_step_ratio",
    "timestep_ratio": "final_step_ratio",
    "conditioning_dtype": "conditioning_dtype",
}
"""Settings that a policy may name, the published code's name of the last included -> field of :class:`Policy`."""


@dataclass(frozen=True)
class Policy:
    """How the student is meant to be sampled; kept in the file's metadata key ``policy_config``.

    shift > 0 of the noise schedule; guidance >= 0: fed to the backbone where it has such an input (FLUX), else the
    scale of the teacher's that is built in (Qwen-Image); nfe >= 1; final_step_ratio > 0: length of the last segment
    in raw time, the others being 1; conditioning_dtype: what rounded noise level and guidance in training, and must
    round them again (:mod:`arcflow.architectures.conditioning`). Raises ValueError for anything else.
    """

    shift: float
    guidance: float
    nfe: int = NFE
    final_step_ratio: float = FINAL_STEP_RATIO
    conditioning_dtype: ConditioningDtype = CONDITIONING_DTYPE

    def __post_init__(self) -> None:
        for name in ("shift", "final_step_ratio"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}, it must be positive and finite")
        if not (self.guidance >= 0 and math.isfinite(self.guidance)):
            raise ValueError(f"guidance is {self.guidance}, it must be finite and 0 or more")
        if self.nfe < 1:
            raise ValueError(f"nfe is {self.nfe}, it must be 1 or more")


def default_policy(arch: ModuleType) -> Policy:
    """The policy of an architecture's published students: shift 3.2, its guidance, two evaluations, ratio 1, bf16."""
    return Policy(SHIFT, arch.GUIDANCE)


def policy_of(recipe: Recipe) -> Policy:
    """The policy of a student that this recipe distils."""
    settings = recipe.distill
    dtype = trained_in(settings.loop.bf16)
    return Policy(recipe.shift, recipe.guidance, settings.nfe, settings.final_step_ratio, dtype)


def read_policy(
    own: object | None, metadata: Mapping[str, str] | None, arch: ModuleType, where: object
) -> tuple[Policy, str]:
    """The policy of an adapter, and what it comes from: "config", "metadata" or "default".

    own: ``arcflow_policy`` of config.json, which must then be whole; metadata: the weights file's. Without the first,
    settings that ``policy_config`` names are taken from there and the others from :func:`default_policy`; released
    files name none. Keys of it that are no settings of the schedule are left alone. Raises AdapterError for values
    that are not understood, or a policy of another kind than ArcFlow's.
    """
    if own is not None:
        try:
            return msgspec.convert(own, Policy), "config"
        except msgspec.ValidationError as error:
            raise AdapterError(f"{where}: arcflow_policy is not understood ({error})") from error
    data = _parse((metadata or {}).get(METADATA_KEY), where)
    kind = data.get("type", KIND)
    if kind != KIND:
        raise AdapterError(f"{where}: {METADATA_KEY} is of type {kind!r}; only {KIND!r} is supported")
    named = {field: data[key] for key, field in _FIELDS.items() if key in data}
    default = default_policy(arch)
    if not named:
        return default, "default"
    try:
        return msgspec.convert({**msgspec.to_builtins(default), **named}, Policy), "metadata"
    except msgspec.ValidationError as error:
        raise AdapterError(f"{where}: {METADATA_KEY} is not understood ({error})") from error


def _parse(text: str | None, where: object) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        data = json.loads(text)
    except ValueError as error:
        raise AdapterError(
            f"{where}: {METADATA_KEY} is no JSON ({error}); download or save the adapter again"
        ) from error
    if not isinstance(data, dict):
        raise AdapterError(f"{where}: {METADATA_KEY} is no JSON object; download or save the adapter again")
    return data
