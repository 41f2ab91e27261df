"""The manifest of a bundle, from the parts that were built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.manifest import Latent, Manifest, Momentum, ParityResult, Port, Schedule
from engines.manifest import Network as NetworkEntry
from export.configs import read_json, read_vae_config, vae_factor
from export.errors import ExportError
from export.graph import OPSET
from export.merge import MergedStudent
from export.models import ModelSpec
from export.networks.base import Dims, Network
from export.tokenizer_files import TokenizerFile

if TYPE_CHECKING:
    from arcflow.adapter import Policy

_TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")
_PATCH = 2
"""Latent cells along each side of a FLUX token."""

MAX_NFE = 64


@dataclass(frozen=True)
class Parts:
    """What a manifest is made from. networks: in the bundle's order; base: the pipeline folder."""

    spec: ModelSpec
    precision: str
    target: str
    base: Path
    student: MergedStudent
    policy: Policy | None
    networks: Sequence[Network]
    tokenizers: Mapping[str, TokenizerFile]
    parents: Mapping[str, str]
    parity: Sequence[ParityResult]


def tool_versions() -> dict[str, str]:
    """The versions of everything that has a say in the bytes of a bundle."""
    return {**{name: version(name) for name in _TOOLS}, "onnx-opset": str(OPSET)}


def assemble(parts: Parts) -> Manifest:
    """The bundle's manifest, complete but for its files (which the writer lists). Raises ExportError."""
    from arcflow.head import PATCH_POSITIONS

    vae = read_vae_config(parts.base / "vae")
    return Manifest(
        model=parts.spec.name,
        architecture="flux",
        precision=parts.precision,
        target=parts.target,
        networks={network.name: _entry(network) for network in parts.networks},
        limits=parts.spec.limits,
        latent=Latent(
            channels=vae["latent_channels"],
            patch=_PATCH,
            vae_factor=vae_factor(vae),
            scaling_factor=[vae["scaling_factor"]],
            shift_factor=[vae.get("shift_factor") or 0.0],
        ),
        schedule=schedule(parts.policy, parts.base, parts.spec.guidance),
        momentum=Momentum(
            modes=parts.student.modes,
            packed_channels=parts.student.config["in_channels"],
            patch_positions=PATCH_POSITIONS,
        ),
        tokenizers={name: tokenizer.spec for name, tokenizer in parts.tokenizers.items()},
        parents=parts.parents,
        tools=tool_versions(),
        parity=parts.parity,
    )


def schedule(policy: Policy | None, base: Path, guidance: float) -> Schedule:
    """The adapter's own sampling policy; without one, the pipeline's shift and ``guidance`` at two evaluations."""
    if policy is not None:
        return Schedule(
            shift=policy.shift,
            guidance=policy.guidance,
            nfe=policy.nfe,
            final_step_ratio=policy.final_step_ratio,
            max_nfe=MAX_NFE,
        )
    config = read_json(base / "scheduler" / "scheduler_config.json")
    shift: Any = config.get("shift")
    if not isinstance(shift, int | float) or not shift > 0:
        raise ExportError(f"neither the adapter nor {base}/scheduler/scheduler_config.json names a positive shift")
    return Schedule(shift=float(shift), guidance=guidance, nfe=2, final_step_ratio=1.0, max_nfe=MAX_NFE)


def _entry(network: Network) -> NetworkEntry:
    return NetworkEntry(file=f"{network.name}.onnx", inputs=_ports(network.ports_in), outputs=_ports(network.ports_out))


def _ports(ports: Mapping[str, tuple[str, Dims]]) -> list[Port]:
    return [Port(name, dtype, list(shape)) for name, (dtype, shape) in ports.items()]  # type: ignore[arg-type]
