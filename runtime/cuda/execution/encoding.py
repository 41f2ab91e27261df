"""Prompts on the device: what is not cached yet goes through the text encoders, what is cached is copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.architectures.base import Architecture
from runtime.cuda.execution.marks import Marks
from runtime.cuda.execution.parts import Part
from runtime.cuda.interface import Device
from runtime.cuda.memory.buffers import BACKBONE, ZERO_TOKENS, ZEROS, port_buffer
from runtime.cuda.memory.encodings import CachedEncodings
from runtime.cuda.memory.extents import Extents, shape_of
from runtime.cuda.memory.residents import Group, Residents
from runtime.hosts.batches import Prompts
from runtime.text import TokenIds

_TEXT_STEP = 32
"""Text of free length is padded to a multiple of this, so that few lengths need contexts and graphs of their own."""


@dataclass(frozen=True)
class Encoder:
    """Everything that turns prompts into conditions on the device."""

    device: Device
    architecture: Architecture
    extents: Extents
    residents: Residents
    encodings: CachedEncodings
    parts: Sequence[Part]
    marks: Marks
    replays: bool
    """Whether evaluations are recorded: not where encoders come and go."""

    def ensure(self, prompts: Prompts, rows: Sequence[int]) -> None:
        """Have the encodings of those rows of ``prompts`` in the cache. Raises BackendError."""
        missing = self.encodings.missing(prompts.texts[row] for row in rows)
        for network in dict.fromkeys(part.network for part in self.parts) if missing else ():
            group = self.residents.need(network)
            for prompt in missing:
                with self.marks.stage("text"):
                    self._encode(group, network, prompt, prompts.ids[network], prompts.texts.index(prompt))

    def feed(self, group: Group, prompts: Prompts, rows: Sequence[int]) -> tuple[list[int], int]:
        """Put the encodings of a batch into the backbone's inputs; text tokens of each image, and those it is fed."""
        texts = [prompts.texts[row] for row in rows]
        sequence = next(part for part in self.parts if part.sequence)
        tokens = [self.encodings.tokens(text, sequence.port) for text in texts]
        width = self._width(max(tokens))
        for part in self.parts:
            start, token_bytes = group.address(port_buffer(BACKBONE, part.port)), part.size.token_bytes
            row_tokens = width if part.sequence else 1
            for place, text in enumerate(texts):
                address = start + place * row_tokens * token_bytes
                self.encodings.fetch(text, part.port, address)
                filled = self.encodings.tokens(text, part.port)
                self._clear(group, address + filled * token_bytes, row_tokens - filled, token_bytes)
        return tokens, width

    def _width(self, longest: int) -> int:
        """Text tokens that the backbone is fed where the longest text of a batch has so many."""
        span = self.extents[BACKBONE].get("text_tokens")
        if not self.architecture.masked or span is None:
            return longest
        return span.clip(-(-longest // _TEXT_STEP) * _TEXT_STEP)

    def _clear(self, group: Group, address: int, tokens: int, token_bytes: int) -> None:
        """Zeros where there is no text."""
        for first in range(0, tokens, ZERO_TOKENS):
            size = min(ZERO_TOKENS, tokens - first) * token_bytes
            self.device.copy(address + first * token_bytes, group.address(ZEROS), size)

    def _encode(self, group: Group, network: str, prompt: str, ids: TokenIds, row: int) -> None:
        """One evaluation of one encoder, and its outputs taken over.

        Each prompt goes alone: what is cached of it must not depend, to the last bit, on the company that it came in.
        """
        spec = self.architecture.manifest.networks[network]
        inputs = self._inputs(network, ids, row)
        batch, width = inputs["input_ids"].shape
        outputs = {port.name: shape_of(port, {"batch": batch, "text_tokens": width}) for port in spec.outputs}
        evaluation = group.evaluation(network, {port.name: inputs[port.name].shape for port in spec.inputs}, outputs)
        for port, values in inputs.items():
            self.device.upload(group.address(port_buffer(network, port)), values)
        if self.replays:
            self.marks.replay((network, width), evaluation.enqueue)
        else:
            evaluation.enqueue()
        for part in (part for part in self.parts if part.network == network):
            address, tokens = group.address(port_buffer(network, part.output)), 1
            if part.sequence:
                drop = self.architecture.manifest.tokenizers[network].drop
                address += drop * part.size.token_bytes
                # All tokens, or where padding can be told from text, those that are text.
                filled = int(ids.mask[row].sum()) if self.architecture.masked else outputs[part.output][1]
                tokens = max(filled - drop, 0)
            self.encodings.put(prompt, part.port, address, tokens)

    def _inputs(self, network: str, ids: TokenIds, row: int) -> dict[str, NDArray[np.int64]]:
        """The encoder's inputs for a prompt; text of free length is cut to its own and padded to a step.

        A plan that takes no single prompt is fed the same one several times.
        """
        manifest, extents = self.architecture.manifest, self.extents[network]
        inputs, tokenizer = {"input_ids": ids.ids[row], "attention_mask": ids.mask[row]}, manifest.tokenizers[network]
        if tokenizer.pad == "longest":
            longest = max(int(ids.mask[row].sum()), tokenizer.drop + manifest.limits.text_tokens.min)
            width = tokenizer.drop + -(-(longest - tokenizer.drop) // _TEXT_STEP) * _TEXT_STEP
            if "text_tokens" in extents:
                width = extents["text_tokens"].clip(width)
            # A token sees those before it only, so any padding will do.
            inputs = {name: np.pad(values[:width], (0, max(width - len(values), 0))) for name, values in inputs.items()}
        times = extents["batch"].least if "batch" in extents else 1
        return {
            port.name: np.tile(inputs[port.name].astype(port.dtype, copy=False), (times, 1))
            for port in manifest.networks[network].inputs
        }
