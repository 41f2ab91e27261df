"""The whole build: networks, plans where the target asks for them, and the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engines.manifest import source_digest
from engines.memory.card import CardMemory, of_bundle
from engines.schema import Manifest, ParityResult
from engines.writer import write_bundle
from export.assembling.gate import measure
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
    """What was built. plans: what is known of each; sizes: bytes of every file by name.

    on_gpu: parity of the plans, where they were run; not_run: why they were not.
    """

    name: str
    networks: Sequence[Exported]
    plans: Sequence[PlanReport]
    bundle: Bundle | None
    sizes: Mapping[str, int]
    on_gpu: Sequence[ParityResult] = ()
    not_run: str = ""

    @property
    def parity(self) -> list[ParityResult]:
        """All that was measured."""
        return [*(result for network in self.networks for result in network.record.parity), *self.on_gpu]

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
            "parity_on_gpu": [msgspec.to_builtins(result) for result in self.on_gpu],
            "memory": self.memory and self.memory.summary(),
        }


def build(inputs: Build, setup: Setup | None, report: Report) -> Finished:
    """Run every stage that has no verified result yet, and write the bundle, whole or not at all.

    setup: how plans are built, where the target asks for them. Raises an ArcFlowError; a bundle that stands at the
    output keeps standing then.
    """
    networks = build_networks(inputs, report)
    manifest = assemble(inputs, networks, measure(inputs, networks, report))
    reports: Sequence[PlanReport] = ()
    if setup is not None:
        reports, manifest = _plans(inputs, networks, manifest, setup, report)
    wanted = inputs.wanted
    name = f"{manifest.model}-{manifest.precision}-{manifest.target}"
    files = _files(networks, reports)
    sizes = {path: source.stat().st_size for path, source in files.items()}
    if wanted.only:
        return Finished(name, networks, reports, None, sizes)
    on_gpu, not_run = _on_gpu(inputs, networks, reports, manifest, setup, report)
    manifest = msgspec.structs.replace(manifest, parity=[*manifest.parity, *on_gpu])
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
    return Finished(name, networks, reports, bundle, {e.path: e.size for e in bundle.manifest.files}, on_gpu, not_run)


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


def _on_gpu(
    inputs: Build,
    networks: Sequence[Exported],
    plans: Sequence[PlanReport],
    manifest: Manifest,
    setup: Setup | None,
    report: Report,
) -> tuple[Sequence[ParityResult], str]:
    """Parity of the plans on the GPU of this machine; where they cannot be run, why."""
    if setup is None:
        return (), ""
    from export.tensorrt.trials import if_here

    def measured() -> Sequence[ParityResult]:
        from export.assembling.device_parity import measure_build

        return measure_build(inputs, networks, plans, manifest, setup, report)

    return if_here(setup.target.capabilities, measured)


def _files(networks: Sequence[Exported], plans: Sequence[PlanReport]) -> dict[str, Path]:
    """What the bundle is made of, less the tokenizers."""
    if plans:
        from export.tensorrt.plans import plan_files

        return plan_files(plans)
    return {name: network.folder / name for network in networks for name in network.record.files}
