"""The rows of the roofline: which stage is which network, and which ONNX stands for a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.bundle import open_bundle
from engines.staleness import onnx_digests
from runtime.bench.costs import costs_of, rows
from runtime.bench.roofline import Cost, Peak
from runtime.errors import RequestError
from tests.runtime import small_bundle, small_plans

SIZES = {
    "batch": 1,
    "levels": 2,
    "image_tokens": 16,
    "text_tokens": 12,
    "rows": 8,
    "columns": 8,
    "height": 32,
    "width": 32,
}
PEAK = Peak({"float32": 1e9}, 1e6, "a sheet")


def cost(operations: float, size: int = 0) -> Cost:
    return Cost({"float32": operations}, size, 0)


def test_each_network_against_its_stage() -> None:
    costs = {"backbone": cost(2e9), "clip": cost(1e8), "t5": cost(3e8), "vae_decoder": cost(0, 500_000)}
    took = {"evaluation 1": 4.0, "evaluation 2": 9.0, "text": 0.8, "vae": 1.0}
    found = {row.network: row for row in rows(costs, PEAK, took)}
    assert (found["backbone"].limit_s, found["backbone"].bound, found["backbone"].share) == (2.0, "compute", 0.5)
    assert (found["vae_decoder"].limit_s, found["vae_decoder"].bound, found["vae_decoder"].share) == (
        0.5,
        "memory",
        0.5,
    )
    assert found["clip"].share is None
    both = found["clip + t5"]
    assert (both.operations, both.limit_s, both.measured_s) == (4e8, pytest.approx(0.4), 0.8)
    assert both.share == pytest.approx(0.5)
    assert {row.peak for row in found.values()} == {"a sheet"}


def test_one_text_encoder_is_the_whole_stage() -> None:
    found = rows({"backbone": cost(1e9), "text": cost(1e9)}, PEAK, {"evaluation 1": 1.0, "text": 4.0})
    assert [(row.network, row.share) for row in found] == [("backbone", 1.0), ("text", 0.25)]


def test_a_stage_that_was_not_measured_has_no_share() -> None:
    (row,) = rows({"backbone": cost(1e9)}, PEAK, {})
    assert (row.measured_s, row.share) == (None, None)


def test_plans_are_counted_by_the_onnx_they_were_built_from(tmp_path: Path) -> None:
    source = small_bundle.build(tmp_path / "tiny-fp16-onnx", target="onnx", precision="fp16")
    plans = small_plans.build(tmp_path / "tiny-fp16-sm89", onnx=onnx_digests(source.manifest))
    sizes = dict.fromkeys(plans.manifest.networks, SIZES)
    beside = costs_of(plans, sizes, None)
    assert beside == costs_of(source, sizes, None)
    assert beside["backbone"].total_operations > 0
    moved = tmp_path / "elsewhere"
    source.root.rename(moved)
    with pytest.raises(RequestError, match=r"there is no folder .*tiny-fp16-onnx: give --onnx FOLDER"):
        costs_of(plans, sizes, None)
    assert costs_of(plans, sizes, moved) == beside


def test_other_onnx_is_refused(tmp_path: Path) -> None:
    small_bundle.build(tmp_path / "tiny-fp16-onnx", target="onnx", precision="fp16")
    plans = small_plans.build(tmp_path / "tiny-fp16-sm89")
    with pytest.raises(RequestError, match=r"is not what the plans of .*tiny-fp16-sm89 were built from"):
        costs_of(plans, dict.fromkeys(plans.manifest.networks, SIZES), None)


def test_a_bundle_of_onnx_is_counted_itself(small: Path) -> None:
    bundle = open_bundle(small, contents="when used")
    costs = costs_of(bundle, dict.fromkeys(bundle.manifest.networks, SIZES), None)
    assert costs["backbone"].port_bytes > costs["backbone"].weight_bytes / 100 > 0
