"""Noise level and guidance as a student saw them in training: golden values, and what the networks are fed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.schema import Manifest, Schedule
from runtime.architectures import conditioning
from runtime.architectures.flux import Flux
from tests.runtime.small_bundle import manifest

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "conditioning.json").read_text(encoding="utf-8"))


def _golden(name: str) -> Any:
    return np.array([entry[name] for entry in GOLDEN], dtype=np.float32)


def test_golden_values() -> None:
    assert len(GOLDEN) > 200
    np.testing.assert_array_equal(conditioning.scaled_bfloat16(_golden("value")), _golden("flux"))
    np.testing.assert_array_equal(conditioning.to_bfloat16(_golden("value")), _golden("qwen"))


@pytest.mark.parametrize(
    ("dtype", "timestep", "guidance"), [("float32", 761.9048, 3500.0), ("bfloat16", 760.0, 3504.0)]
)
def test_flux_is_fed_what_it_was_trained_with(dtype: Any, timestep: float, guidance: float) -> None:
    """What diffusers' pipeline makes of the second of two noise levels, and of FLUX.1-dev's guidance."""
    made: Manifest = manifest(schedule=Schedule(3.2, 3.5, 2, 1.0, dtype))
    fed = Flux(made).levels([1.0, 16 / 21], 3.5, batch=2)
    for name, expected in (("timestep", timestep), ("guidance", guidance)):
        assert fed[name].dtype == np.float32 and fed[name].shape == (4,)
        assert fed[name][2:] * np.float32(1000) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(fed["timestep"][:2], np.ones(2, dtype=np.float32))
