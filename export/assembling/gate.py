"""The quality gate of an FP8 build, where the student is small enough to be run: its end of the path against float32's.

A bundle for a CPU is run as it is. For one of bfloat16 and FP8, which no CPU runs, the simulation stands in that the
FP8 graph is held to by tests.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from export.assembling.twin_parity import is_small
from export.assembling.wanted import Attention
from export.folders.places import Needs
from export.networks.base import BACKBONE
from export.networks.streaming import weight_bytes
from export.precision import CPU, Precision
from export.sources.options import command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.schema import Gate
    from export.assembling.inputs import Build
    from export.assembling.record import Exported

PROMPTS = 16
"""How many of the model's prompts are generated."""

BATCH = 8
"""Images that are generated together."""

_VAE = "vae_decoder"

_SIMULATED = 2.0
"""Evaluations that one in simulated FP8 costs as much as (measured on small students: 1.5)."""

_SLOWER, _BYTES_A_SECOND = 1.5, 1.5e9
"""How much slower a network computes than one large product of matrices, and how fast it writes what lies between
(measured on small students at 320 and 1024 pixels; see ``docs/log.md``)."""

_HEAP = 1.4
"""Memory in use for a byte of results that are alive together (measured likewise)."""


def applies(build: Build) -> bool:
    """Whether the gate is measured: the whole of an fp8 bundle, whose networks are small enough to be run here."""
    wanted = build.wanted
    whole_fp8 = wanted.precision is Precision.FP8 and not wanted.only
    return whole_fp8 and all(is_small(task.network) for task in build.tasks)


def gate_needs(build: Build) -> Needs:
    """What the gate will take on this machine beside the program, nothing where it is not measured. Found by running
    the networks without values."""
    if not applies(build):
        return Needs(0, seconds=0.0)
    import torch

    from export.networks.cost import cost_of
    from export.quality.load import speed

    latent, (width, height) = build.subject.latent, build.wanted.shapes.resolutions[0]
    rows, columns = height // latent.vae_factor, width // latent.vae_factor
    nfe = build.subject.student.policy.nfe
    sizes = {
        "batch": BATCH,
        "levels": BATCH * nfe,
        "rows": rows,
        "columns": columns,
        "image_tokens": rows * columns // latent.patch**2,
        "text_tokens": build.wanted.spec.limits.text_tokens.opt,
    }
    networks = {task.name: task.network for task in build.tasks}
    costs = {name: cost_of(network, sizes) for name, network in networks.items()}
    calls = dict.fromkeys(networks, 1.0) | {_VAE: 2.0, BACKBONE: nfe * (1.0 + _SIMULATED)}
    fast = speed(torch.float32, torch.device("cpu"))
    once = sum(
        calls[name] * (_SLOWER * cost.operations / fast + cost.made / _BYTES_A_SECOND) for name, cost in costs.items()
    )
    held = sum(weight_bytes(networks[name], torch.float32) for name in (BACKBONE, _VAE))
    return Needs(2 * held + int(_HEAP * max(c.peak for c in costs.values())), seconds=once * PROMPTS / BATCH)


def measure(build: Build, networks: Sequence[Exported]) -> Gate | None:
    """The gate's figures, or None: not fp8, or a network too large to run here. Raises GateError where it is missed."""
    if build.fp8 is None or not applies(build):
        return None
    import torch

    from export.fp8.attention import fake_attention
    from export.fp8.policy import layer_of
    from export.fp8.simulation import fake_quantised
    from export.networks.streaming import Placement, open_module
    from export.quality.gate import check_gate, measure_gate
    from export.students.prompts import default_prompts, read_prompts
    from export.students.rollout import onnx_evaluate

    wanted, subject, calibration = build.wanted, build.subject, build.fp8.calibration
    built = {network.name: network for network in networks}
    cpu = torch.device("cpu")
    prompts = read_prompts(default_prompts(wanted.spec.name))[:PROMPTS]
    stored = {network.name: network.record.stored for network in networks}
    size = wanted.shapes.resolutions[0]
    prompted = subject.prompted(prompts, *size, torch.float32, cpu)
    told = subject.prompted(prompts, *size, torch.float32, cpu, stored=stored)
    backbone = built[BACKBONE]
    reference = open_module(subject.whole, torch.float32, cpu, Placement.HOLD)
    vae = open_module(built[_VAE].task.network, torch.float32, cpu, Placement.HOLD)
    merged = [built[name] for name, part in wanted.architecture.parts.items() if part.merged]
    layers: dict[str, float | None] = {
        layer_of(name): calibration.amax[layer_of(name)] for name in backbone.record.quantised
    }
    layers |= dict.fromkeys(layer_of(name) for network in merged for name in network.record.stored)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        images: torch.Tensor = vae(latents=latents)[0]
        return images

    def attention() -> AbstractContextManager[None]:
        return fake_attention(calibration.attention) if wanted.attention is Attention.FP8 else nullcontext()

    def simulated(**ports: torch.Tensor) -> Sequence[torch.Tensor]:
        with fake_quantised(reference.network, layers), attention():  # type: ignore[arg-type]
            found: Sequence[torch.Tensor] = reference(**ports)
        return found

    quantised = onnx_evaluate(*(str(part.onnx) for part in merged)) if wanted.target == CPU else simulated
    gate = measure_gate(
        reference, quantised, decode, prompted, subject.sigmas(), subject.latent, wanted.gate, BATCH, told
    )
    return check_gate(gate, _advice(build))


def _advice(build: Build) -> str:
    """What to do where the gate is missed, in commands for these very sources."""
    wanted = build.wanted
    blame = command("sensitivity", [*wanted.options, "--calibration", str(wanted.calibration)])
    if build.scales_of_plain:
        return (
            f"measure the scales with the LoRA: {wanted.calibrate}   or see which layers are to blame: {blame}   and "
            "leave them out with --keep-high"
        )
    return (
        f"see which layers are to blame: {blame}   and leave them out with --keep-high, or calibrate with another "
        f"--method: {wanted.calibrate}"
    )
