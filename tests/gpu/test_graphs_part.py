"""The part ``graphs``: the stub compiles for every GPU and makes the field that results are held to; its aim."""

from __future__ import annotations

import numpy as np
import pytest

from gpu.kernels.checks import LEVELS
from gpu.kernels.fields import Size
from gpu.kernels.stub import factor, stub_image
from gpu.parts.graphs import AIM_TOKENS, GAP_AIM, measure
from runtime.solver import MomentumField, displacement
from tests.gpu.recorder import Recorder
from tests.gpu.stub_on_host import host_stub
from tests.runtime.cuda.stand_in import StandInDevice


@pytest.mark.parametrize("capability", ["sm80", "sm86", "sm89", "sm90", "sm100", "sm120"])
def test_the_stub_compiles(capability: str) -> None:
    assert stub_image(capability).startswith(b"\x7fELF")


@pytest.mark.parametrize("levels", LEVELS)
def test_the_factor_is_the_solver_on_the_stubs_field(levels: tuple[float, float, float]) -> None:
    modes, x = 16, np.random.default_rng(0).standard_normal((1, 3, 8))
    means = x[:, :, None] * (1 + np.arange(modes) / modes)[None, None, :, None]
    gates = np.full((1, 3, modes, 4), -np.log(modes))
    rates = np.broadcast_to((np.arange(1, modes) / modes)[None, None, :, None], (1, 3, modes - 1, 4))
    moved = x + displacement(MomentumField(means, gates, rates), *levels)
    np.testing.assert_allclose(moved, x * factor(modes, *levels), rtol=1e-12)


def test_result_gaps_and_how_it_ran() -> None:
    device, emit = StandInDevice(), Recorder()
    measure(emit, device, host_stub(device), AIM_TOKENS, rounds=3, rate=1e12)
    result, launched, graph = emit.records
    assert not emit.failed and result["error"] < 1e-6
    assert launched["how"] == "launched" and graph["how"] == "replayed"
    for record in (launched, graph):
        assert record["gap"]["median_s"] > 0 and record["host"]["median_s"] > 0 and record["gap"]["samples"] == 3
        assert record["bytes"] == pytest.approx(20.9e6, rel=1e-2)
        assert record["bound_s"] == pytest.approx(record["bytes"] / 1e12)
    assert launched["held"] is None and isinstance(graph["held"], bool)
    assert device.memory_used() == 0


def test_only_what_the_bytes_allow_is_held_to_the_gap() -> None:
    device, emit = StandInDevice(), Recorder()
    measure(emit, device, host_stub(device), 128, rounds=2, rate=3e12)
    assert emit.records[2]["held"] is None and "aim" not in emit.records[2]["show"]
    assert (
        Size(16384, 1, 16, 64, "float32").moved / 3e12 > GAP_AIM > Size(AIM_TOKENS, 1, 16, 64, "float32").moved / 3e12
    )


def test_a_refused_graph_is_not_called_one() -> None:
    device, emit = StandInDevice(), Recorder()
    device.refuse = "not today"
    measure(emit, device, host_stub(device), AIM_TOKENS, rounds=3, rate=1e12)
    graph = emit.records[2]
    assert graph["how"] == "eager" and graph["held"] is False
    assert any("not today" in reason for reason in graph["refusals"])
