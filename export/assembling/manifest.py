"""The manifest of a bundle of ONNX networks, from what was built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from engines.schema import Gate, Manifest, Momentum, Port, Quantisation, Schedule
from engines.schema import Network as NetworkEntry
from export.assembling.record import tool_versions
from export.precision import opset

if TYPE_CHECKING:
    from arcflow.adapter import Policy
    from export.assembling.inputs import Build, Task
    from export.assembling.record import Exported
    from export.networks.base import Dims


def assemble(build: Build, networks: Sequence[Exported], gate: Gate | None = None) -> Manifest:
    """The manifest, complete but for its files (which the writer lists)."""
    wanted = build.wanted
    return msgspec.structs.replace(
        outline(build),
        networks={exported.name: _entry(exported.task, *exported.record.files) for exported in networks},
        parents=build.parents,
        tools={**tool_versions(), "onnx-opset": str(opset(wanted.precision, wanted.target))},
        parity=[result for network in networks for result in network.record.parity],
        quantisation=_quantisation(build, networks),
        gate=gate,
    )


def outline(build: Build) -> Manifest:
    """What is known of it from headers, before anything is built: all that sizes follow from."""
    from arcflow.architectures.head import PATCH_POSITIONS

    wanted, student = build.wanted, build.subject.student
    return Manifest(
        model=wanted.spec.name,
        architecture=wanted.spec.architecture,  # type: ignore[arg-type]
        precision=wanted.precision.value,
        target="onnx" if wanted.needs_plans else wanted.target,
        networks={task.name: _entry(task, f"{task.name}.onnx") for task in build.tasks},
        limits=build.limits,
        latent=build.subject.latent,
        schedule=schedule(student.policy, wanted.most_nfe),
        momentum=Momentum(
            modes=student.modes,
            packed_channels=student.config["in_channels"],
            patch_positions=PATCH_POSITIONS,
        ),
        tokenizers={name: tokenizer.spec for name, tokenizer in build.tokenizers.items()},
        parents={},
        tools={},
        parity=(),
    )


def schedule(policy: Policy, max_nfe: int) -> Schedule:
    """How the adapter says that its student is sampled, as a manifest has it."""
    return Schedule(
        shift=policy.shift,
        guidance=policy.guidance,
        nfe=policy.nfe,
        final_step_ratio=policy.final_step_ratio,
        conditioning_dtype=policy.conditioning_dtype,
        max_nfe=max_nfe,
    )


def _quantisation(build: Build, networks: Sequence[Exported]) -> Quantisation | None:
    if build.fp8 is None:
        return None
    calibration, plain = build.fp8.calibration, build.scales_of_plain
    return Quantisation(
        calibration=calibration.digest,
        method=str(calibration.method),
        synthetic=calibration.synthetic,
        layers=[name for network in networks for name in network.record.quantised],
        stored={network.name: sorted(network.record.stored) for network in networks if network.record.stored},
        kept_high=[*build.fp8.keep_high, *(f"{task.name}.{pattern}" for task in build.tasks for pattern in task.kept)],
        options={"attention": str(build.fp8.attention), **({"scales": "without LoRA"} if plain else {})},
    )


def _entry(task: Task, graph: str, *data: str) -> NetworkEntry:
    network = task.network
    return NetworkEntry(
        file=graph,
        inputs=ports(network.ports_in),
        outputs=ports(network.ports_out),
        data=data,
        compute=task.compute,  # type: ignore[arg-type]
    )


def ports(described: Mapping[str, tuple[str, Dims]]) -> list[Port]:
    """The inputs or outputs of a network as a manifest has them."""
    return [Port(name, dtype, list(shape)) for name, (dtype, shape) in described.items()]  # type: ignore[arg-type]
