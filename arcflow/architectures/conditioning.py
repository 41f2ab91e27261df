"""The numbers that condition a backbone, noise level and guidance, as it saw them in training.

A diffusers backbone that computes in bfloat16 rounds them before it makes sinusoids of them. A student trained so
expects the rounded values, whatever it computes in later. What exactly is rounded belongs to the architecture
(``as_trained`` in :mod:`arcflow.architectures`); golden values: ``tests/golden/conditioning.json``.
"""

from __future__ import annotations

from typing import Literal

ConditioningDtype = Literal["float32", "bfloat16"]
"""What a backbone computed in when it was trained; "float32" rounds nothing."""

TIME_SCALE = 1000.0
"""Factor between a noise level, or a guidance, and what its sinusoids are made of."""


def trained_in(bf16: bool) -> ConditioningDtype:
    """The dtype of a run that computes in bfloat16, or not (:attr:`arcflow.recipe.LoopConfig.bf16`)."""
    return "bfloat16" if bf16 else "float32"
