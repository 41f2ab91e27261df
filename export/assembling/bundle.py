"""The whole build: networks, plans where the target asks for them, and the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engines.manifest import source_digest
from engines.memory.card import CardMemory, of_bundle
from engines.schema import Gate, Manifest
from engines.writer import write_bundle
from export.assembling.manifest import assemble
from export.assembling.record import Exported
from export.assembling.stages import build_networks
from export.reporting import Report

if TYPE_CHECKING:
    from engines.bundle import Bundle
    from export.assembling.inputs import Build
    from export.tensorrt.build import PlanReport
    from export.tensorrt.plans import Setup

_MOVE_FROM = 1 << 30
"""Bytes of ONNX from which on files move into the bundle instead of being copied: no room is needed twice then, and
the next build of the same networks makes them again."""


@dataclass(frozen=True)
class Finished:
    """What was built. plans: what is known of each; sizes: bytes of every file by name."""

    name: str
    networks: Sequence[Exported]
    plans: Sequence[PlanReport]
    bundle: Bundle | None
    sizes: Mapping[str, int]

    @property
    def paths(self) -> list[Path]:
        """What to name to the user: the bundle's folder; without one, the network files."""
        if self.bundle is not None:
            return [self.bundle.root]
        return [plan.path for plan in self.plans] or [network.onnx for network in self.networks]

    @property
    def memory(self) -> CardMemory | None:
        """What the bundle takes of a GPU; None for a CPU's, and without a bundle."""
        return None if self.bundle is None else of_bundle(self.bundle.manifest)

    def summary(self) -> dict[str, Any]:
        """Plain data for a program."""
        return {
            "paths": [str(path) for path in self.paths],
            "files": dict(self.sizes),
            "networks": {
                network.name: {
                    "nodes": network.record.nodes,
                    "quantised": len(network.record.quantised),
                    "parity": [msgspec.to_builtins(result) for result in network.record.parity],
                }
                for network in self.networks
            },
            "plans": {plan.network: {"bytes": plan.size, "seconds": round(plan.seconds, 2)} for plan in self.plans},
            "memory": self.memory and self.memory.summary(),
        }


def build(inputs: Build, setup: Setup | None, report: Report) -> Finished:
    """Run every stage that has no verified result yet, and write the bundle, whole or not at all.

    setup: how plans are built, where the target asks for them. Raises an ArcFlowError; a bundle that stands at the
    output keeps standing then.
    """
    networks = build_networks(inputs, report)
    manifest = assemble(inputs, networks, _gate(inputs, networks, report))
    reports: Sequence[PlanReport] = ()
    if setup is not None:
        reports, manifest = _plans(inputs, networks, manifest, setup, report)
    wanted = inputs.wanted
    name = f"{manifest.model}-{manifest.precision}-{manifest.target}"
    files = _files(networks, reports)
    sizes = {path: source.stat().st_size for path, source in files.items()}
    if wanted.only:
        return Finished(name, networks, reports, None, sizes)
    report("bundle", 0, 0, "write")
    tokenizers = {tokenizer.spec.file: tokenizer.source for tokenizer in inputs.tokenizers.values()}
    if reports:
        from export.tensorrt.plans import write_plans

        bundle = write_plans(wanted.out, manifest, tokenizers, reports)
    else:
        consume = files if sum(sizes.values()) >= _MOVE_FROM else {}
        made = {name: digest for network in networks for name, digest in network.record.files.items()}
        bundle = write_bundle(wanted.out, manifest, {**files, **tokenizers}, expected=made, consume=consume)
    report("bundle", 1, 1, str(wanted.out))
    return Finished(name, networks, reports, bundle, {e.path: e.size for e in bundle.manifest.files})


def _gate(inputs: Build, networks: Sequence[Exported], report: Report) -> Gate | None:
    """The quality gate's figures, where it applies."""
    if inputs.fp8 is None or inputs.wanted.only:
        return None
    from export.assembling.gate import measure

    report("gate", 0, 0, "generate")
    gate = measure(inputs, networks)
    figures = "" if gate is None else ", ".join(f"{r.measure} {r.value:.2%}" for r in gate.results)
    report("gate", 1, 1, figures or "not measured: the student is too large to run here")
    return gate


def _plans(
    inputs: Build, networks: Sequence[Exported], manifest: Manifest, setup: Setup, report: Report
) -> tuple[Sequence[PlanReport], Manifest]:
    """The plans of all networks, and the manifest that describes them."""
    from export.tensorrt.plans import Source, build_plans, plan_manifest

    origins = {network.name: Source(network.onnx, source_digest(network.record.files)) for network in networks}
    reports = build_plans(
        manifest,
        origins,
        inputs.wanted.workdir,
        setup,
        lambda name, done, total, note="": report(f"plan {name}", done, total, note),
    )
    return reports, plan_manifest(manifest, setup, reports, origins)


def _files(networks: Sequence[Exported], plans: Sequence[PlanReport]) -> dict[str, Path]:
    """What the bundle is made of, less the tokenizers."""
    if plans:
        from export.tensorrt.plans import plan_files

        return plan_files(plans)
    return {name: network.folder / name for network in networks for name in network.record.files}
