"""The quality gate of an FP8 build, where the student is small enough to be run: its end of the path against float32's.

A bundle for a CPU is run as it is. For one of bfloat16 and FP8, which no CPU runs, the simulation stands in that the
FP8 graph is held to by tests.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from export.precision import CPU
from export.request import BACKBONE, Attention, Sources
from export.source_options import command
from export.twin_parity import is_small

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.manifest import Gate
    from export.stages import Exported

PROMPTS = 16
"""How many of the model's prompts are painted."""

_VAE = "vae_decoder"


def measure(sources: Sources, networks: Sequence[Exported]) -> Gate | None:
    """The gate's figures, or None: not fp8, or a network too large to run here. Raises GateError where it is missed."""
    import torch

    from export.attention import fake_attention
    from export.fake_quantise import fake_quantised
    from export.fp8_policy import layer_of
    from export.gate import check_gate
    from export.rollout import onnx_evaluate
    from export.streaming import Placement, open_module
    from export.subject import Subject, default_prompts, read_prompts

    request, calibration = sources.request, sources.calibration
    built = {network.name: network for network in networks}
    if calibration is None or request.only or not all(is_small(network.network) for network in networks):
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
    return check_gate(reference, quantised, decode, prompted, subject.sigmas(), sources.latent, limits, advice=advice)


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
