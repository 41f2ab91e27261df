"""The quality gate: what FP8 does to the end of the path, the latent after the last evaluation and the image.

The quantised and the unquantised student run the same prompts from the same noise with the same closed-form solver;
what differs is the backbone alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from engines.schema import Gate, GateResult
from export.errors import GateError
from export.students.rollout import Evaluate, noises, rollout

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from engines.schema import Latent
    from export.students.prompts import Prompted

LIMIT = 0.03
"""Greatest relative L2 error of the latent, and of the image (RGB in about [-1, 1]), mean over images."""

FIRST_NOISE = 1_000_000
"""Number of the first image's noise: far from those that calibration generates."""

Decode = Callable[["Tensor"], "Tensor"]
"""The VAE decoder: latents [B, C, H, W], scaled and shifted back -> images [B, 3, H', W']."""


def holds(gate: Gate) -> bool:
    """Whether every error is within its limit; one that is not finite is not."""
    return all(result.value <= result.limit for result in gate.results)


def check_gate(gate: Gate, advice: str) -> Gate:
    """The same figures. advice: what to do where a limit is missed or a value is not finite, which raises GateError."""
    if not holds(gate):
        missed = (result for result in gate.results if not result.value <= result.limit)
        found = ", ".join(f"the {r.measure} by {r.value:.1%} (limit {r.limit:.1%})" for r in missed)
        raise GateError(f"fp8 changes {found}, relative L2 over {gate.images} images; {advice}")
    return gate


Ends = Callable[[slice, "Tensor"], Sequence["Tensor"]]
"""Latents at the path's end of some prompts (rows) from their noise: the unquantised student's, then every other's."""


def apart(students: Sequence[tuple[Evaluate, Prompted]], sigmas: Sequence[float]) -> Ends:
    """Students that run one after the other, each told the prompts in its own way; the unquantised one first."""

    def ends(rows: slice, noise: Tensor) -> Sequence[Tensor]:
        return [rollout(text.calling(net), noise, text.ports(rows), sigmas) for net, text in students]

    return ends


def abreast(evaluate: Evaluate, told: Sequence[Prompted], sigmas: Sequence[float]) -> Ends:
    """Students that one call evaluates, each on an equal part of the batch, as under ``fake_quantised``.

    told: the prompts, as each student is told them; the unquantised one first.
    """
    import torch

    def ends(rows: slice, noise: Tensor) -> Sequence[Tensor]:
        parts = [text.encodings for text in told]
        joined = {name: torch.cat([part[name][rows] for part in parts]) for name in parts[0]}
        text = replace(told[0], encodings=joined)
        ports = {name: tensor.to(noise.device) for name, tensor in text.ports(slice(None)).items()}
        found = rollout(text.calling(evaluate), torch.cat([noise] * len(told)), ports, sigmas)
        return found.chunk(len(told))

    return ends


def measure_gates(
    ends: Ends, decode: Decode | None, prompted: Prompted, latent: Latent, nfe: int, limit: float = LIMIT,
    batch: int = 8, device: torch.device | str = "cpu",
) -> list[Gate]:  # fmt: skip
    """Generate every prompt and compare each student with the first: the mean over images of relative L2 norms.

    decode: None to compare latents only; limit: of each error; batch: images a call; device: where the noise is put.
    """
    import torch

    channels = latent.channels * latent.patch**2
    tokens = prompted.rows * prompted.columns
    errors: list[dict[str, list[Tensor]]] = []
    for start in range(0, len(prompted), batch):
        rows = slice(start, min(start + batch, len(prompted)))
        noise = noises(range(FIRST_NOISE + rows.start, FIRST_NOISE + rows.stop), tokens, channels)
        truth, *others = (found.cpu() for found in ends(rows, noise.to(device)))
        errors = errors or [{} for _ in others]
        shown = [_decoded(decode, x, latent, prompted) for x in (truth, *others)] if decode is not None else []
        for number, (x, seen) in enumerate(zip(others, errors, strict=True)):
            seen.setdefault("latent", []).append(relative_l2(x, truth))
            if shown:
                seen.setdefault("image", []).append(relative_l2(shown[number + 1], shown[0]))
    return [
        Gate(
            nfe=nfe,
            images=len(prompted),
            width=prompted.columns * latent.patch * latent.vae_factor,
            height=prompted.rows * latent.patch * latent.vae_factor,
            results=[GateResult(name, float(torch.cat(values).mean()), limit) for name, values in seen.items()],
        )
        for seen in errors
    ]


def _decoded(decode: Decode, tokens: Tensor, latent: Latent, prompted: Prompted) -> Tensor:
    import torch

    with torch.no_grad():
        return decode(unpacked(tokens, latent, prompted.rows, prompted.columns))


def unpacked(tokens: Tensor, latent: Latent, rows: int, columns: int) -> Tensor:
    """Packed latents [B, rows*columns, C*4] as the decoder takes them: [B, C, 2*rows, 2*columns], scaled back."""
    import torch

    from arcflow.architectures.packing import unpack

    scale, shift = (
        torch.tensor(list(values)).reshape(1, -1, 1, 1) for values in (latent.scaling_factor, latent.shift_factor)
    )
    latents: Tensor = unpack(tokens, rows, columns) / scale + shift
    return latents


def relative_l2(found: Tensor, truth: Tensor) -> Tensor:
    """|found - truth| / |truth| per row, [B], in float64; not a number where a value is none."""
    import torch

    difference: Tensor = torch.linalg.vector_norm((found.double() - truth.double()).flatten(1), dim=1)
    scale: Tensor = torch.linalg.vector_norm(truth.double().flatten(1), dim=1)
    return difference / scale.clamp(min=1e-30)
