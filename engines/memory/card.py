"""Which card a bundle fits: what it takes of a GPU's memory, by network and in all.

The same sizes as the runtime allocates in Python, from the manifest and from what the plans' builder said of them;
where there are no plans yet, from an estimate of theirs, or from their weights alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engines.memory.arena import plan_arena
from engines.memory.buffers import groups_of, needs_of
from engines.memory.extents import Extents, extents_of
from engines.memory.parts import parts_of
from engines.schema import SOURCE_TARGET, Manifest, PlanMemory
from foundation.measuring import gigabytes

CARDS = (12, 16, 24, 32, 48, 80)
"""GB of the common cards. Vendors count 2**30 bytes each; all other sizes here are in GB of 10**9 bytes."""

ALLOWANCE = 500_000_000
"""Bytes for CUDA's context, for kernels and for what TensorRT keeps beside weights: a guess that nothing measured."""

Basis = Literal["builder", "estimate", "weights"]
"""Whose figures of the plans they are: their builder's; an estimate; or weights alone, and the totals are the least."""


@dataclass(frozen=True)
class CardMemory:
    """Bytes of a GPU's memory.

    networks: the weights of each. working: the arena of all buffers when everything is resident, activations among
    them; cached: encodings of prompts then; both 0 where the basis is weights alone. resident, low_vram: all that is
    there at once at most, ALLOWANCE included, with everything resident and with ``--low-vram``.
    """

    networks: Mapping[str, int]
    working: int
    cached: int
    resident: int
    low_vram: int
    basis: Basis

    def summary(self) -> dict[str, Any]:
        """Plain data for a program: bytes, and GB of the cards (null where none of CARDS takes it)."""
        return {
            "basis": self.basis,
            "networks": dict(self.networks),
            "working": self.working,
            "cached": self.cached,
            "allowance": ALLOWANCE,
            "resident": {"bytes": self.resident, "card": card_for(self.resident)},
            "low_vram": {"bytes": self.low_vram, "card": card_for(self.low_vram)},
        }

    def lines(self) -> list[str]:
        """Two lines for people: what it is made of, and which cards take it."""
        parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in self.networks.items())
        rest = [f"CUDA {gigabytes(ALLOWANCE)}"]
        if self.basis == "weights":
            rest += ["what plans work in comes on top"]
        else:
            rest = [f"working memory {gigabytes(self.working)}", f"cached prompts {gigabytes(self.cached)}", *rest]
        told = {"builder": "on a GPU", "estimate": "on a GPU, estimated", "weights": "on a GPU, at least"}[self.basis]
        fits = f"resident {self._fit(self.resident)}; with --low-vram {self._fit(self.low_vram)}"
        return [f"{told}: {parts}; {', '.join(rest)}", fits]

    def _fit(self, total: int) -> str:
        card, least = card_for(total), self.basis == "weights"
        if card is None:
            return f"{gigabytes(total)}, more than a card of {CARDS[-1]} GB"
        return f"{gigabytes(total)}, a card of {card} GB" + (" or more" if least else "")


def card_memory(
    manifest: Manifest, plans: Mapping[str, PlanMemory], extents: Extents | None = None, basis: Basis = "builder"
) -> CardMemory:
    """What the runtime takes with plans like these, of every network.

    extents: of the plans' inputs, None for the manifest's own. Raises ManifestError where they do not fit its ports.
    """
    extents = extents_of(manifest) if extents is None else extents
    scratch = {name: plan.activations for name, plan in plans.items()}

    def load(names: Sequence[str]) -> tuple[int, int]:
        arena = plan_arena(needs_of(manifest, extents, names, scratch))
        return sum(plans[name].weights for name in names), arena.size

    (all_weights, working), *_ = map(load, groups_of(manifest, low_vram=False))
    cached = sum(part.size.held for part in parts_of(manifest, extents))
    return CardMemory(
        networks={name: plan.weights for name, plan in plans.items()},
        working=working,
        cached=cached,
        resident=all_weights + working + cached + ALLOWANCE,
        low_vram=max(map(sum, map(load, groups_of(manifest, low_vram=True)))) + ALLOWANCE,
        basis=basis,
    )


def weights_alone(manifest: Manifest, weights: Mapping[str, int]) -> CardMemory:
    """What plans take at least whose weights are so many bytes, by network, and of which nothing else is known."""
    least = {
        low_vram: ALLOWANCE + max(sum(weights[name] for name in names) for names in groups_of(manifest, low_vram))
        for low_vram in (False, True)
    }
    return CardMemory(weights, 0, 0, least[False], least[True], "weights")


def of_bundle(manifest: Manifest) -> CardMemory | None:
    """What a bundle takes, or where it holds ONNX the plans of it will; None where no plan is ever made of it.

    A plan is little else than weights, and so is ONNX with its data. Raises ManifestError.
    """
    if manifest.engine is not None and manifest.engine.memory:
        return card_memory(manifest, manifest.engine.memory)
    if manifest.engine is None and manifest.target != SOURCE_TARGET:
        return None
    sizes = {entry.path: entry.size for entry in manifest.files}
    weights = {
        name: sum(sizes[path] for path in (network.file, *network.data)) for name, network in manifest.networks.items()
    }
    return weights_alone(manifest, weights)


def card_for(total: int) -> int | None:
    """GB of the smallest of CARDS with room for ``total`` bytes; None where that is more than any has."""
    return next((card for card in CARDS if total <= card << 30), None)
