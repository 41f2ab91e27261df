"""What buffers are planned: large enough for every request that is let through, and no larger than profiles ask."""

from __future__ import annotations

import msgspec
import pytest

from engines.errors import ManifestError
from engines.memory.arena import plan_arena
from engines.memory.buffers import BACKBONE, CONDITIONER, LEVELS, PIXELS, VAE, ZEROS, X, needs_of, port_buffer
from engines.memory.extents import extents_of, shape_of
from engines.schema import LEVELS_A_RUN, Manifest, Range
from tests.runtime import small_bundle, small_plans

ORDER = ("clip", "t5", CONDITIONER, BACKBONE, VAE)
SCRATCH = {"clip": 1 << 12, "t5": 1 << 20, CONDITIONER: 1 << 16, BACKBONE: 1 << 22, VAE: 1 << 21}


def _sizes(manifest: Manifest) -> dict[str, int]:
    return {need.name: need.size for need in needs_of(manifest, extents_of(manifest), ORDER, SCRATCH)}


def test_sizes_from_the_limits_of_onnx() -> None:
    sizes = _sizes(small_bundle.manifest())
    batch, tokens = 4, 64 // 8 * (64 // 8)
    assert sizes[X] == batch * tokens * 16 * 4
    assert sizes[port_buffer(BACKBONE, "means")] == batch * tokens * small_bundle.MODES * 16 * 4
    assert sizes[port_buffer("t5", "sequence")] == batch * 12 * 64 * 4
    assert sizes[port_buffer(VAE, "images")] == batch * 3 * 64 * 64 * 4
    assert sizes[PIXELS] == batch * 3 * 64 * 64
    assert ZEROS not in sizes, "FLUX is never told what is padding"


def test_a_plan_of_several_resolutions_needs_no_square_of_its_longest_sides() -> None:
    sizes = _sizes(small_plans.profiled(tokens=32, side=16))
    assert sizes[X] == 4 * 32 * 16 * 4
    assert sizes[port_buffer(VAE, "latents")] == 4 * 4 * (32 * 4) * 4
    assert sizes[PIXELS] == 4 * 3 * (32 * 4) * 16


def test_text_encoders_share_the_place_of_what_comes_later() -> None:
    manifest = small_bundle.manifest()
    needs = needs_of(manifest, extents_of(manifest), ORDER, SCRATCH)
    plan = plan_arena(needs)
    assert plan.size < plan.apart - SCRATCH["t5"] - SCRATCH[VAE] + 1
    fullest = max(sum(plan.sizes[n.name] for n in needs if n.first <= step <= n.last) for step in range(len(ORDER)))
    assert plan.size == fullest


def test_the_conditioner_may_run_between_two_evaluations() -> None:
    manifest = small_bundle.manifest()
    needs = {need.name: need for need in needs_of(manifest, extents_of(manifest), ORDER, SCRATCH)}
    conditioner, backbone, vae = (ORDER.index(name) for name in (CONDITIONER, BACKBONE, VAE))
    fed = [port_buffer(BACKBONE, port.name) for port in manifest.networks[BACKBONE].inputs]
    for name in (X, LEVELS, *fed):
        assert (needs[name].first, needs[name].last) == (conditioner, vae), name
    assert needs[LEVELS].size == LEVELS_A_RUN * 4 * small_bundle.MODULATION * 4
    for port in (*manifest.networks[CONDITIONER].inputs, *manifest.networks[CONDITIONER].outputs):
        own = needs[port_buffer(CONDITIONER, port.name)]
        assert (own.first, own.last) == (conditioner, conditioner)
    assert needs[port_buffer(BACKBONE, "means")].first == backbone
    alone = needs_of(manifest, extents_of(manifest), (BACKBONE, VAE), SCRATCH)
    assert {need.first for need in alone} == {0, 1}


def test_a_profile_that_does_not_fit_the_manifest() -> None:
    manifest = small_plans.profiled(32, 16)
    profiles = {**manifest.engine.profiles, "clip": {}}  # type: ignore[union-attr]
    damaged = msgspec.structs.replace(manifest, engine=msgspec.structs.replace(manifest.engine, profiles=profiles))
    with pytest.raises(ManifestError, match="profile of clip does not fit its input 'input_ids'"):
        extents_of(damaged)


def test_dimensions_by_name() -> None:
    port = small_bundle.manifest().networks[VAE].outputs[0]
    assert shape_of(port, {"batch": 2, "rows": 5, "columns": 7}) == (2, 3, 20, 28)
    with pytest.raises(ManifestError, match=r"has a dimension '4\*rows'; known are batch"):
        shape_of(port, {"batch": 1})


def test_a_wider_batch_is_a_larger_arena() -> None:
    manifest = small_bundle.manifest()
    limits = msgspec.structs.replace(manifest.limits, batch=Range(1, 1, 8))
    wider = msgspec.structs.replace(manifest, limits=limits)
    assert _sizes(wider)[X] == 2 * _sizes(manifest)[X]
