"""A student and what FP8 makes of it, simulated in torch, generating the same prompts beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from export.assembling.inputs import Build, stored_weights
from export.assembling.wanted import Attention
from export.errors import GateError
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
    from export.assembling.wanted import Wanted
    from export.fp8.simulation import Bounds
    from export.networks.base import Network
    from export.quality.gate import Decode
    from export.quality.keep_high import Kept
    from export.quality.measure import Run
    from export.students.prompts import Prompted

VAE = "vae_decoder"
"""The network that images are compared through."""

_RANKED = 4
"""Prompts that layers are ranked by, each quantised alone."""


class Simulation:
    """A student and what FP8 makes of it, which generate the same prompts beside each other."""

    def __init__(self, build: Build, run: Run, report: Report = silent) -> None:
        if build.fp8 is None:
            raise GateError("there is no gate without fp8")
        self._build, self._run, self._report = build, run, report
        self._calibration, self._attention = build.fp8.calibration, build.fp8.attention
        networks = map(build.subject.network, build.wanted.architecture.parts)
        self._stored = {network.name: _stored(build.wanted, network) for network in networks if network.fp8_weights}
        self._hurt: dict[str, list[float]] = {}
        self.layers = [layer_of(name) for task in build.tasks for name in sorted(task.quantised)]

    @property
    def facts(self) -> dict[str, Any]:
        """All that the figures depend on."""
        student = self._build.subject.student
        return {
            "run": replace(self._run, student=student.parents).key,
            "scales": self._calibration.digest,
            "layers": self.layers,
            "stored": self._stored,
            "attention": str(self._attention),
            "limit": self._build.wanted.gate,
        }

    @cache  # noqa: B019 - it lives as long as the search
    def opened(self) -> tuple[Any, Decode, Prompted, Prompted]:
        """The unquantised student, its decoder, and the prompts as it and as the quantised student is told them."""
        import torch

        run, subject = self._run, self._build.subject
        how = (run.prompts, run.width, run.height, run.dtype, run.device, self._report)
        plain = subject.prompted(*how)
        told = subject.prompted(*how, stored=self._stored) if any(self._stored.values()) else plain
        vae = open_module(subject.network(VAE), torch.float32, torch.device("cpu"), Placement.HOLD)
        return open_module(subject.whole, run.dtype, run.device, run.placement), _decoding(vae), plain, told

    def measure(self, choices: Sequence[Kept]) -> list[Gate]:
        """The figures with those layers kept high, of all choices abreast."""
        module, decode, plain, told = self.opened()
        merged = [name for name, part in self._build.wanted.architecture.parts.items() if part.merged]
        stored: Bounds = dict.fromkeys(layer_of(weight) for name in merged for weight in self._stored.get(name, ()))
        shares: list[Bounds] = [{}]
        for kept in choices:
            chosen = [layer for layer in self.layers if layer not in set(kept)]
            shares.append({**stored, **{layer: self._calibration.amax[layer] for layer in chosen}})
        whole = self._run.placement is Placement.HOLD
        batch = max(self._run.batch // len(shares), 1) if whole else self._run.batch
        calls = (len(self._run.sigmas) - 1) * -(-len(self._run.prompts) // batch)
        ticks = Counter[str]()

        def watch(layer: str, given: Tensor, in_fp8: Tensor) -> None:
            ticks[""] += 1
            self._report("gate", ticks[""], calls * len({name for share in shares for name in share}))
            error = float((in_fp8 - given).float().norm() / given.float().norm().clamp(min=1e-30))
            self._hurt.setdefault(layer, []).append(error)

        attention = self._attention is Attention.FP8
        with ExitStack() as stack:
            stack.enter_context(fake_quantised(getattr(module, INNER), *shares, watch=None if whole else watch))
            if attention:
                stack.enter_context(fake_attention(self._calibration.attention, len(shares)))
            told_each = [plain, *(told for _ in choices)]
            return self.gates(abreast(module, told_each, self._run.sigmas), decode, batch)

    def gates(self, ends: Ends, decode: Decode, batch: int) -> list[Gate]:
        """The figures of students that ``ends`` runs."""
        run, build = self._run, self._build
        *_, plain, _ = self.opened()
        limit, nfe = build.wanted.gate, len(run.sigmas) - 1
        return measure_gates(ends, decode, plain, build.subject.latent, nfe, limit, batch, run.device)

    def ranking(self) -> list[str]:
        """The layers, the one that FP8 hurts most first: by what quantising each alone does to the displacement of a
        student that runs as it is; of a streamed one by what it does to the layer's own output."""
        if self._run.placement is Placement.HOLD:
            from export.quality.layer_errors import layer_errors

            *_, plain, _ = self.opened()
            few = replace(plain, encodings={name: tensor[:_RANKED] for name, tensor in plain.encodings.items()})
            count = partial(self._report, "rank layers")
            subject = self._build.subject
            errors = layer_errors(subject.whole, self._calibration, few, self._run.sigmas, count).layers
            order = [layer for layer, _ in errors]
        else:
            order = sorted(self._hurt, key=lambda layer: -max(self._hurt[layer]))
        wanted = set(self.layers)
        return [layer for layer in order if layer in wanted]


def _stored(wanted: Wanted, network: Network) -> list[str]:
    """The weights that fp8 only stores so, by the names that the network's module gives them."""
    import torch

    with torch.device("meta"):
        inner = getattr(network.build(torch.float32), INNER)
    return sorted(stored_weights(wanted, network, [name for name, _ in inner.named_parameters()]))


def _decoding(vae: Any) -> Decode:
    def decode(latents: Tensor) -> Tensor:
        images: Tensor = vae(latents=latents)[0]
        return images

    return decode
