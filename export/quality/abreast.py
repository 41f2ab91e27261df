"""A student and what FP8 makes of it, simulated in torch, generating the same prompts beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from export.fp8.attention import fake_attention
from export.fp8.policy import layer_of
from export.fp8.simulation import fake_quantised
from export.networks.base import INNER
from export.networks.streaming import Placement, open_module
from export.quality.gate import Ends, abreast, measure_gates
from export.reporting import Report, silent

if TYPE_CHECKING:
    from torch import Tensor

    from engines.schema import Gate
    from export.fp8.calibration import Calibration
    from export.fp8.simulation import Bounds
    from export.quality.gate import Decode
    from export.quality.keep_high import Kept
    from export.quality.measure import Run
    from export.students.prompts import Prompted
    from export.students.subject import Subject

VAE = "vae_decoder"
"""The network that images are compared through."""

_RANKED = 4
"""Prompts that layers are ranked by, each quantised alone."""


@dataclass(frozen=True)
class Fp8Student:
    """What of a student is in FP8, by state-dict names.

    calibration: bounds of its activations; layers: those that are multiplied in FP8; stored: by network, weights that
    are only stored so; attention: whether it multiplies in FP8 too.
    """

    calibration: Calibration
    layers: tuple[str, ...]
    stored: Mapping[str, Sequence[str]]
    attention: bool


class Abreast:
    """A student and what FP8 makes of it, which generate the same prompts beside each other."""

    def __init__(
        self, subject: Subject, fp8: Fp8Student, run: Run, limit: float, small: bool, report: Report = silent
    ) -> None:
        """run: prompts, size and place; limit: of each error; small: layers may be ranked by quantising each alone."""
        self._subject, self._fp8, self._run, self._limit, self._report = subject, fp8, run, limit, report
        self._small = small
        self._hurt: dict[str, list[float]] = {}

    @property
    def facts(self) -> dict[str, Any]:
        """All that the figures depend on."""
        fp8 = self._fp8
        return {
            "run": replace(self._run, student=self._subject.student.parents).key,
            "scales": fp8.calibration.digest,
            "layers": fp8.layers,
            "stored": {name: list(weights) for name, weights in fp8.stored.items()},
            "attention": fp8.attention,
        }

    @cache  # noqa: B019 - it lives as long as the search
    def opened(self) -> tuple[Any, Decode, Prompted, Prompted]:
        """The unquantised student, its decoder, and the prompts as it and as the quantised student is told them."""
        import torch

        run, subject = self._run, self._subject
        how = (run.prompts, run.width, run.height, run.dtype, run.device, self._report)
        plain = subject.prompted(*how)
        told = subject.prompted(*how, stored=self._fp8.stored) if any(self._fp8.stored.values()) else plain
        vae = open_module(subject.network(VAE), torch.float32, torch.device("cpu"), Placement.HOLD)
        return open_module(subject.whole, run.dtype, run.device, run.placement), _decoding(vae), plain, told

    def measure(self, choices: Sequence[Kept]) -> list[Gate]:
        """The figures with those layers kept high, of all choices abreast."""
        module, decode, plain, told = self.opened()
        fp8 = self._fp8
        merged = [name for name, part in self._subject.architecture.parts.items() if part.merged]
        stored: Bounds = dict.fromkeys(layer_of(weight) for name in merged for weight in fp8.stored.get(name, ()))
        shares: list[Bounds] = [{}]
        for kept in choices:
            chosen = [layer for layer in fp8.layers if layer not in set(kept)]
            shares.append({**stored, **{layer: fp8.calibration.amax[layer] for layer in chosen}})
        batch = max(self._run.batch // len(shares), 1) if self._small else self._run.batch
        calls = (len(self._run.sigmas) - 1) * -(-len(self._run.prompts) // batch)
        ticks = Counter[str]()

        def watch(layer: str, given: Tensor, in_fp8: Tensor) -> None:
            ticks[""] += 1
            self._report("gate", ticks[""], calls * len({name for share in shares for name in share}))
            error = float((in_fp8 - given).float().norm() / given.float().norm().clamp(min=1e-30))
            self._hurt.setdefault(layer, []).append(error)

        with ExitStack() as stack:
            stack.enter_context(fake_quantised(getattr(module, INNER), *shares, watch=None if self._small else watch))
            if fp8.attention:
                stack.enter_context(fake_attention(fp8.calibration.attention, len(shares)))
            told_each = [plain, *(told for _ in choices)]
            return self.gates(abreast(module, told_each, self._run.sigmas), decode, batch)

    def gates(self, ends: Ends, decode: Decode, batch: int) -> list[Gate]:
        """The figures of students that ``ends`` runs."""
        run = self._run
        *_, plain, _ = self.opened()
        nfe = len(run.sigmas) - 1
        return measure_gates(ends, decode, plain, self._subject.latent, nfe, self._limit, batch, run.device)

    def ranking(self, needed: bool) -> list[str]:
        """The layers, the one that FP8 hurts most first: of a small student by what quantising each alone does to the
        displacement, measured where it is needed; of a large one by what it does to the layer's own output, which was
        seen meanwhile."""
        if self._small and not needed:
            return []
        if self._small:
            from export.quality.layer_errors import layer_errors

            *_, plain, _ = self.opened()
            few = replace(plain, encodings={name: tensor[:_RANKED] for name, tensor in plain.encodings.items()})
            count = partial(self._report, "rank layers")
            errors = layer_errors(self._subject.whole, self._fp8.calibration, few, self._run.sigmas, count).layers
            order = [layer for layer, _ in errors]
        else:
            order = sorted(self._hurt, key=lambda layer: -max(self._hurt[layer]))
        wanted = set(self._fp8.layers)
        return [layer for layer in order if layer in wanted]


def _decoding(vae: Any) -> Decode:
    def decode(latents: Tensor) -> Tensor:
        images: Tensor = vae(latents=latents)[0]
        return images

    return decode
