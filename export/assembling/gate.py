"""The quality gate of an FP8 build, where the student is small enough to be run: its end of the path against float32's.

A bundle for a CPU is run as it is. For one of bfloat16 and FP8, which no CPU runs, the simulation stands in that the
FP8 graph is held to by tests.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from export.assembling.twin_parity import is_small
from export.networks.base import BACKBONE
from export.networks.streaming import weight_bytes
from export.precision import CPU, Precision
from export.sources.options import command
from export.students.request import Attention, Request, Sources

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from engines.schema import Gate, Latent
    from export.assembling.record import Exported
    from export.networks.base import Network

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


def applies(request: Request, networks: Iterable[Network]) -> bool:
    """Whether the gate is measured: the whole of an fp8 bundle, whose networks are small enough to be run here."""
    return request.precision is Precision.FP8 and not request.only and all(map(is_small, networks))


def gate_needs(request: Request, networks: Mapping[str, Network], latent: Latent, nfe: int) -> tuple[int, float]:
    """(bytes of memory beside the program's, seconds) that the gate will take on this machine; zeros where it is not
    measured. Found by running the networks without values."""
    if not applies(request, networks.values()):
        return 0, 0.0
    import torch

    from export.networks.cost import cost_of
    from export.quality.load import speed

    width, height = request.shapes.resolutions[0]
    rows, columns = height // latent.vae_factor, width // latent.vae_factor
    sizes = {
        "batch": BATCH,
        "rows": rows,
        "columns": columns,
        "image_tokens": rows * columns // latent.patch**2,
        "text_tokens": request.spec.limits.text_tokens.opt,
    }
    costs = {name: cost_of(network, sizes) for name, network in networks.items()}
    calls = dict.fromkeys(networks, 1.0) | {_VAE: 2.0, BACKBONE: nfe * (1.0 + _SIMULATED)}
    fast = speed(torch.float32, torch.device("cpu"))
    once = sum(
        calls[name] * (_SLOWER * cost.operations / fast + cost.made / _BYTES_A_SECOND) for name, cost in costs.items()
    )
    held = sum(weight_bytes(networks[name], torch.float32) for name in (BACKBONE, _VAE))
    return 2 * held + int(_HEAP * max(cost.peak for cost in costs.values())), once * PROMPTS / BATCH


def measure(sources: Sources, networks: Sequence[Exported]) -> Gate | None:
    """The gate's figures, or None: not fp8, or a network too large to run here. Raises GateError where it is missed."""
    import torch

    from export.fp8.attention import fake_attention
    from export.fp8.policy import layer_of
    from export.fp8.simulation import fake_quantised
    from export.networks.streaming import Placement, open_module
    from export.quality.gate import check_gate
    from export.students.rollout import onnx_evaluate
    from export.students.subject import Subject, default_prompts, read_prompts

    request, calibration = sources.request, sources.calibration
    built = {network.name: network for network in networks}
    if calibration is None or not applies(request, [network.network for network in networks]):
        return None
    cpu = torch.device("cpu")
    subject = Subject(request.spec, request.base, request.adapter, request.loras, sources.student)
    prompts = read_prompts(default_prompts(request.spec.name))[:PROMPTS]
    width, height = request.shapes.resolutions[0]
    prompted = subject.prompted(prompts, width, height, torch.float32, cpu)
    backbone = built[BACKBONE]
    reference = open_module(backbone.network, torch.float32, cpu, Placement.HOLD)
    vae = open_module(built[_VAE].network, torch.float32, cpu, Placement.HOLD)
    layers = {layer_of(name): calibration.amax[layer_of(name)] for name in backbone.record.quantised}

    def decode(latents: torch.Tensor) -> torch.Tensor:
        images: torch.Tensor = vae(latents=latents)[0]
        return images

    def attention() -> AbstractContextManager[None]:
        return fake_attention(calibration.attention) if request.attention is Attention.FP8 else nullcontext()

    def simulated(**ports: torch.Tensor) -> Sequence[torch.Tensor]:
        with fake_quantised(reference.network, layers), attention():  # type: ignore[arg-type]
            found: Sequence[torch.Tensor] = reference(**ports)
        return found

    quantised = onnx_evaluate(str(backbone.onnx)) if request.target == CPU else simulated
    limits = (request.gate, request.gate)
    advice = _advice(sources)
    return check_gate(reference, quantised, decode, prompted, subject.sigmas(), sources.latent, limits, BATCH, advice)


def _advice(sources: Sources) -> str:
    """What to do where the gate is missed, in commands for these very sources."""
    request = sources.request
    blame = command("sensitivity", [*request.options, "--calibration", str(request.calibration)])
    if sources.scales_of_plain:
        return (
            f"measure the scales with the LoRA: {request.calibrate}   or see which layers are to blame: {blame}   and "
            "leave them out with --keep-high"
        )
    return (
        f"see which layers are to blame: {blame}   and leave them out with --keep-high, or calibrate with another "
        f"--method: {request.calibrate}"
    )
