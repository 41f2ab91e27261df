"""Which card a bundle fits: totals from the buffers that are planned, and what is said where less is known."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from engines.memory.arena import plan_arena
from engines.memory.buffers import needs_of
from engines.memory.card import ALLOWANCE, CARDS, CardMemory, card_for, card_memory, of_bundle
from engines.memory.extents import extents_of
from engines.schema import FileEntry, Manifest, PlanMemory
from foundation.measuring import gigabytes
from tests.runtime import small_bundle, small_plans

GB = 10**9
PLANS = {
    "clip": PlanMemory(1 * GB, 1000),
    "t5": PlanMemory(7 * GB, 2000),
    "conditioner": PlanMemory(3 * GB, 3000),
    "backbone": PlanMemory(9 * GB, 400 << 20),
    "vae_decoder": PlanMemory(GB // 10, 1500 << 20),
}


def plans_with(memory: Mapping[str, PlanMemory]) -> Manifest:
    return small_plans.manifest(memory=memory)


def told(manifest: Manifest) -> CardMemory:
    memory = of_bundle(manifest)
    assert memory is not None
    return memory


def test_totals_are_weights_the_arena_and_what_is_cached() -> None:
    manifest = plans_with(PLANS)
    memory = told(manifest)
    extents, scratch = extents_of(manifest), {name: plan.activations for name, plan in PLANS.items()}
    alone = plan_arena(needs_of(manifest, extents, ("backbone", "vae_decoder"), scratch)).size
    assert memory.basis == "builder"
    assert memory.networks == {name: plan.weights for name, plan in PLANS.items()}
    assert memory.resident == 20_100_000_000 + memory.working + memory.cached + ALLOWANCE
    assert memory.low_vram == 9_100_000_000 + alone + ALLOWANCE
    assert 1500 << 20 <= alone <= memory.working < (1500 << 20) + (400 << 20)
    assert memory.cached > 0


def test_a_text_encoder_can_be_what_takes_most_with_low_vram() -> None:
    large = {**PLANS, "t5": PlanMemory(19 * GB, 0)}
    assert told(plans_with(large)).low_vram >= 19 * GB + ALLOWANCE
    assert told(plans_with(large)).low_vram < 20 * GB


@pytest.mark.parametrize("card", CARDS)
def test_a_card_is_taken_to_its_last_byte(card: int) -> None:
    assert card_for(card << 30) == card
    assert card_for((card << 30) + 1) != card
    assert card_for(card * GB) == card, "a card's GB are larger than ours"


def test_no_card_is_beyond_the_largest() -> None:
    assert card_for((CARDS[-1] << 30) + 1) is None
    memory = told(plans_with({**PLANS, "backbone": PlanMemory(99 * GB, 0)}))
    assert "more than a card of 80 GB" in memory.lines()[1]
    assert memory.summary()["low_vram"]["card"] is None


def test_onnx_says_what_its_plans_take_at_least() -> None:
    onnx = small_bundle.manifest()
    sizes = dict.fromkeys(onnx.networks, 2 * GB) | {"backbone": 9 * GB}
    files = [FileEntry(f"{name}.onnx", "a" * 64, size) for name, size in sizes.items()]
    files += [FileEntry("backbone.data", "a" * 64, GB)]
    networks = {
        **onnx.networks,
        "backbone": msgspec.structs.replace(onnx.networks["backbone"], data=["backbone.data"]),
    }
    portable = msgspec.structs.replace(onnx, target="onnx", networks=networks, files=files)
    memory = told(portable)
    assert memory.networks["backbone"] == 10 * GB
    assert (memory.resident, memory.low_vram) == (18 * GB + ALLOWANCE, 12 * GB + ALLOWANCE)
    first, second = memory.lines()
    assert first.startswith("on a GPU, at least: ")
    assert second == "resident 18.50 GB, a card of 24 GB or more; with --low-vram 12.50 GB, a card of 12 GB or more"
    assert of_bundle(msgspec.structs.replace(portable, target="cpu")) is None


def test_plans_of_a_builder_that_said_nothing() -> None:
    manifest = plans_with({})
    files = [FileEntry(network.file, "a" * 64, GB) for network in manifest.networks.values()]
    memory = told(msgspec.structs.replace(manifest, files=files))
    assert (memory.basis, memory.working, memory.resident) == ("weights", 0, 5 * GB + ALLOWANCE)


def test_an_estimate_is_told_as_one() -> None:
    manifest = plans_with({})
    memory = card_memory(manifest, PLANS, basis="estimate")
    assert memory.lines()[0].startswith("on a GPU, estimated: clip 1.00 GB, t5 7.00 GB, ")
    assert memory.summary()["basis"] == "estimate"
    assert memory.resident == told(plans_with(PLANS)).resident


def test_sizes_for_people() -> None:
    assert [gigabytes(size) for size in (0, 4_700_000, 99_000_000, 100_000_000, 8_618_000_000)] == [
        "0.0 MB", "4.7 MB", "99.0 MB", "0.10 GB", "8.62 GB",
    ]  # fmt: skip
