"""Prompts on the device: what is not known yet goes through the text encoders, what is known is copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.manifest import Manifest
from runtime.cuda.execution.feeding import TEXT_STEP, Feeding, Part
from runtime.cuda.execution.marks import Marks
from runtime.cuda.interface import Device
from runtime.cuda.memory.buffers import BACKBONE, ZERO_TOKENS, ZEROS, port_buffer
from runtime.cuda.memory.encodings import Embeddings
from runtime.cuda.memory.extents import Extents, shape_of
from runtime.cuda.memory.residents import Group, Residents
from runtime.text import TokenIds


@dataclass(frozen=True)
class Prompts:
    """The different prompts of a request. digests: of each; ids: by tokenizer, a row a prompt."""

    digests: tuple[str, ...]
    ids: Mapping[str, TokenIds]


@dataclass(frozen=True)
class Encoder:
    """Everything that turns prompts into conditions on the device."""

    device: Device
    manifest: Manifest
    extents: Extents
    residents: Residents
    embeddings: Embeddings
    feeding: Feeding
    marks: Marks
    replays: bool
    """Whether evaluations are recorded: not where encoders come and go."""

    def ensure(self, prompts: Prompts, rows: Sequence[int]) -> None:
        """Have the encodings of those rows of ``prompts`` among the embeddings. Raises BackendError."""
        row_of = {prompts.digests[row]: row for row in rows}
        missing = [row_of[digest] for digest in self.embeddings.missing(row_of)]
        for part in self.feeding.parts if missing else ():
            group = self.residents.need(part.encoder)
            for row in missing:
                with self.marks.stage("text"):
                    self._encode(group, part, prompts, row)

    def feed(self, group: Group, prompts: Prompts, rows: Sequence[int]) -> tuple[list[int], int]:
        """Put the encodings of a batch into the backbone's inputs; text tokens of each image, and those it is fed."""
        digests = [prompts.digests[row] for row in rows]
        sequence = next(part for part in self.feeding.parts if part.sequence)
        tokens = [self.embeddings.tokens(digest, sequence.port) for digest in digests]
        width = self.feeding.text_width(tokens)
        for part in self.feeding.parts:
            start, token_bytes = group.address(port_buffer(BACKBONE, part.port)), part.size.token_bytes
            row_tokens = width if part.sequence else 1
            for place, digest in enumerate(digests):
                address = start + place * row_tokens * token_bytes
                self.embeddings.fetch(digest, part.port, address)
                filled = self.embeddings.tokens(digest, part.port)
                self._clear(group, address + filled * token_bytes, row_tokens - filled, token_bytes)
        return tokens, width

    def _clear(self, group: Group, address: int, tokens: int, token_bytes: int) -> None:
        """Zeros where there is no text."""
        for first in range(0, tokens, ZERO_TOKENS):
            size = min(ZERO_TOKENS, tokens - first) * token_bytes
            self.device.copy(address + first * token_bytes, group.address(ZEROS), size)

    def _encode(self, group: Group, part: Part, prompts: Prompts, row: int) -> None:
        """One evaluation of one encoder, and its output taken over.

        Each prompt goes alone: what is kept of it must not depend, to the last bit, on the company that it came in.
        """
        spec, name = self.manifest.networks[part.encoder], part.encoder
        inputs = self._inputs(name, prompts.ids[name], row)
        shapes = {port.name: inputs[port.name].shape for port in spec.inputs}
        batch, width = inputs["input_ids"].shape
        output = spec.outputs[0]
        shape = shape_of(output, {"batch": batch, "text_tokens": width})
        evaluation = group.evaluation(name, shapes, {output.name: shape})
        for port, values in inputs.items():
            self.device.upload(group.address(port_buffer(name, port)), values)
        if self.replays:
            self.marks.replay((name, width), evaluation.enqueue)
        else:
            evaluation.enqueue()
        drop = self.manifest.tokenizers[name].drop if part.sequence else 0
        address = group.address(port_buffer(name, output.name)) + drop * part.size.token_bytes
        tokens = self._kept(prompts.ids[name], row, drop, shape[1]) if part.sequence else 1
        self.embeddings.put(prompts.digests[row], part.port, address, tokens)

    def _kept(self, ids: TokenIds, row: int, drop: int, output_tokens: int) -> int:
        """Tokens of a row's encoding: all of them, or where padding can be told from text, those that are text."""
        return max(int(ids.mask[row].sum()) - drop, 0) if self.feeding.masked else output_tokens - drop

    def _inputs(self, name: str, ids: TokenIds, row: int) -> dict[str, NDArray[np.int64]]:
        """The encoder's inputs for a prompt; text of free length is cut to its own and padded to a step.

        A plan that takes no single prompt is fed the same one several times.
        """
        values, mask = ids.ids[row], ids.mask[row]
        tokenizer, extents = self.manifest.tokenizers[name], self.extents[name]
        if tokenizer.pad == "longest":
            longest = max(int(mask.sum()), tokenizer.drop + self.manifest.limits.text_tokens.min)
            width = tokenizer.drop + -(-(longest - tokenizer.drop) // TEXT_STEP) * TEXT_STEP
            if "text_tokens" in extents:
                width = min(max(width, extents["text_tokens"].least), extents["text_tokens"].most)
            values, mask = _to_width(values, width), _to_width(mask, width)
        inputs = {"input_ids": values, "attention_mask": mask}
        times = extents["batch"].least if "batch" in extents else 1
        return {
            port.name: np.tile(inputs[port.name].astype(port.dtype, copy=False), (times, 1))
            for port in self.manifest.networks[name].inputs
        }


def _to_width(values: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """A row cut, or padded with zeros, to ``width``. A token sees those before it only, so any padding will do."""
    cut = values[:width]
    return np.pad(cut, (0, width - len(cut)))
