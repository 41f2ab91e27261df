"""The conditioner on the device: what it makes of prompts, noise levels and sizes is cached like encodings are.

Each of its results depends on less than all of its inputs, and is cached by what it depends on: a row of modulation on
prompt and schedule, the context on the prompt, rotary angles on a size. It runs where one of them is missing, for one
prompt at a time and all levels of a run (LEVELS_A_RUN), so that what is cached does not depend on the company.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from engines.memory.arena import aligned
from engines.memory.buffers import (
    BACKBONE,
    CONDITIONER,
    LEVELS,
    level_bytes,
    level_rows,
    port_buffer,
)
from engines.memory.extents import shape_of
from engines.memory.parts import CONTEXT, IMAGE_ROTARY, MODULATION, TEXT_ROTARY
from engines.schema import SEQUENCE
from runtime.cuda.execution.encoding import Encoder, Wanted
from runtime.cuda.memory.residents import Group

_Keys = Mapping[str, Sequence[Hashable]]
"""By part, what its values are cached by."""


@dataclass(frozen=True)
class ConditionedEncoder(Encoder):
    """Text encoders, and the conditioner between them and the backbone."""

    def ensure(self, wanted: Wanted) -> None:
        """The conditioner runs for the first levels; where networks take turns, for all. Raises BackendError."""
        texts, runs = list(dict.fromkeys(wanted.texts)), self._runs(wanted)
        # In the middle of a batch the conditioner alone may run (feed_levels): all that it then needs is cached now.
        several = len(runs) > 1
        modulated = [
            text for text in texts if several or self.encodings.missing(MODULATION, _rows(wanted, text, runs[0]))
        ]
        needed = dict.fromkeys(self.architecture.text_ports, modulated)
        self.encode(wanted.prompts, {**needed, SEQUENCE: self.encodings.missing(CONTEXT, texts)})
        for run in runs[:1] if self.together else runs:
            self._condition(wanted, run)

    def feed(self, group: Group, wanted: Wanted) -> int:
        _, width = self.feed_text(group, wanted, CONTEXT)
        self.encodings.fetch(IMAGE_ROTARY, wanted.grid, group.address(port_buffer(BACKBONE, IMAGE_ROTARY)))
        self.encodings.fetch(TEXT_ROTARY, width, group.address(port_buffer(BACKBONE, TEXT_ROTARY)))
        return width

    def feed_levels(self, group: Group, wanted: Wanted, first: int) -> None:
        run = self._runs(wanted)[first // level_rows(self.architecture.manifest)]
        if first:
            self._condition(wanted, run)
        row_bytes = level_bytes(self.architecture.manifest, 1)
        stride = aligned(level_bytes(self.architecture.manifest, len(wanted.texts)))
        for place, text in enumerate(wanted.texts):
            for index, row in enumerate(_rows(wanted, text, run)):
                self.encodings.fetch(MODULATION, row, group.address(LEVELS) + index * stride + place * row_bytes)

    def _runs(self, wanted: Wanted) -> list[tuple[float, ...]]:
        """The noise levels of each run of the conditioner."""
        sigmas, most = wanted.settings.sigmas[:-1], level_rows(self.architecture.manifest)
        return [sigmas[first : first + most] for first in range(0, len(sigmas), most)]

    def _condition(self, wanted: Wanted, run: tuple[float, ...]) -> None:
        """Have what the backbone is fed at those levels in the cache."""
        for text in dict.fromkeys(wanted.texts):
            made = SEQUENCE if self.encodings.missing(CONTEXT, [text]) else CONTEXT
            width = self.encodings.tokens(made, text)
            keys: _Keys = {
                MODULATION: _rows(wanted, text, run),
                CONTEXT: [text],
                IMAGE_ROTARY: [wanted.grid],
                TEXT_ROTARY: [width],
            }
            missing = {port: self.encodings.missing(port, keys[port]) for port in keys}
            if any(missing.values()):
                group = self.residents.need(CONDITIONER)
                with self.marks.stage("text"):
                    self._run(group, wanted, text, run, width, missing)
                    self._take(
                        group, keys, missing, {CONTEXT: width, IMAGE_ROTARY: wanted.grid.tokens, TEXT_ROTARY: width}
                    )

    def _run(self, group: Group, wanted: Wanted, text: str, run: tuple[float, ...], width: int, missing: _Keys) -> None:
        """One evaluation. What no missing result depends on is not fed: anything may lie there."""
        network, extents = self.architecture.manifest.networks[CONDITIONER], self.extents[CONDITIONER]
        # A plan that takes no single image is fed the same text several times.
        times = extents["batch"].least if "batch" in extents else 1
        dims = {"levels": len(run), "batch": times, "image_tokens": wanted.grid.tokens, "text_tokens": width}
        shapes = [{port.name: shape_of(port, dims) for port in ports} for ports in (network.inputs, network.outputs)]
        evaluation = group.evaluation(CONDITIONER, *shapes)
        self.upload(group, CONDITIONER, self.architecture.levels(run, wanted.settings.guidance, 1))
        self.upload(group, CONDITIONER, self.architecture.constants([width] * times, width, wanted.grid))
        for port in self.architecture.text_ports:
            result, count, tokens = (CONTEXT, times, width) if port == SEQUENCE else (MODULATION, len(run), 1)
            start, size = group.address(port_buffer(CONDITIONER, port)), tokens * self.part(port).size.token_bytes
            for place in range(count) if missing[result] else ():
                self.encodings.fetch(port, text, start + place * size)
        if self.together:
            self.marks.replay((CONDITIONER, *dims.values()), evaluation.enqueue)
        else:
            evaluation.enqueue()

    def _take(self, group: Group, keys: _Keys, missing: _Keys, tokens: Mapping[str, int]) -> None:
        """Take over the results that were missing."""
        for port, here in keys.items():
            part = self.part(port)
            for place, key in enumerate(here):
                if key in missing[port]:
                    address = group.address(port_buffer(CONDITIONER, part.output)) + place * part.size.size
                    self.encodings.put(port, key, address, tokens.get(port, 1))


def _rows(wanted: Wanted, text: str, run: tuple[float, ...]) -> list[Hashable]:
    """What a prompt's rows are cached by: the whole run, for a row may depend on its company, and the place in it."""
    return [(text, wanted.settings.guidance, run, place) for place in range(len(run))]
