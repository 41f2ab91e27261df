"""The quality gate: what FP8 does to the end of the path, the latent after the last evaluation and the image.

The quantised and the unquantised student run the same prompts from the same noise with the same closed-form solver;
what differs is the backbone alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engines.schema import Gate, GateResult
from export.errors import GateError
from export.students.rollout import Evaluate, noises, rollout

if TYPE_CHECKING:
    from torch import Tensor

    from engines.schema import Latent
    from export.students.prompts import Prompted

LIMIT = 0.03
"""Greatest relative L2 error of the latent, and of the image (RGB in about [-1, 1]), mean over images."""

FIRST_NOISE = 1_000_000
"""Number of the first image's noise: far from those that calibration generates."""

Decode = Callable[["Tensor"], "Tensor"]
"""The VAE decoder: latents [B, C, H, W], scaled and shifted back -> images [B, 3, H', W']."""


def check_gate(gate: Gate, advice: str) -> Gate:
    """The same figures. advice: what to do where a limit is missed or a value is not finite, which raises GateError."""
    missed = [result for result in gate.results if not result.value <= result.limit]
    if missed:
        found = ", ".join(f"the {r.measure} by {r.value:.1%} (limit {r.limit:.0%})" for r in missed)
        raise GateError(f"fp8 changes {found}, relative L2 over {gate.pictures} images; {advice}")
    return gate


def measure_gate(
    reference: Evaluate, quantised: Evaluate, decode: Decode | None, prompted: Prompted, sigmas: Sequence[float],
    latent: Latent, limit: float = LIMIT, batch: int = 8, told: Prompted | None = None,
) -> Gate:  # fmt: skip
    """Generate every prompt with both backbones and compare: relative L2 norms an image, their mean is what counts.

    told: the prompts as the quantised one is told them, None where its text encoders are not quantised.

    sigmas: noise levels, 1 first and 0 last; decode: None to compare latents only; limit: of each error; batch: images
    a call.
    """
    import torch

    channels = latent.channels * latent.patch**2
    tokens = prompted.rows * prompted.columns
    errors: dict[str, list[Tensor]] = {"latent": []} if decode is None else {"latent": [], "picture": []}
    for start in range(0, len(prompted), batch):
        rows = slice(start, min(start + batch, len(prompted)))
        noise = noises(range(FIRST_NOISE + rows.start, FIRST_NOISE + rows.stop), tokens, channels)
        sides = ((reference, prompted), (quantised, told or prompted))
        truth, found = (rollout(text.calling(net), noise, text.ports(rows), sigmas) for net, text in sides)
        errors["latent"].append(relative_l2(found, truth))
        if decode is not None:
            with torch.no_grad():
                images = [decode(unpacked(x, latent, prompted.rows, prompted.columns)) for x in (found, truth)]
            errors["picture"].append(relative_l2(*images))
    results = [GateResult(name, float(torch.cat(values).mean()), limit) for name, values in errors.items()]
    return Gate(nfe=len(sigmas) - 1, pictures=len(prompted), results=results)


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
