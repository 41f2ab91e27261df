"""Prompts on the device: what is not cached yet goes through the text encoders, what is cached is copied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.memory.arena import aligned
from engines.memory.buffers import BACKBONE, LEVELS, ZERO_TOKENS, ZEROS, level_bytes, level_port, port_buffer
from engines.memory.extents import Extents, shape_of
from engines.memory.parts import Part
from engines.schema import SEQUENCE
from runtime.architectures.base import Architecture, Grid
from runtime.cuda.execution.marks import Marks
from runtime.cuda.interface import Device
from runtime.cuda.memory.encodings import CachedEncodings
from runtime.cuda.memory.residents import Group, Residents
from runtime.hosts.batches import Prompts
from runtime.result import Settings
from runtime.text import TokenIds

_TEXT_STEP = 32
"""Text of free length is padded to a multiple of this, so that few lengths need contexts and graphs of their own."""


@dataclass(frozen=True)
class Wanted:
    """What a batch needs to be told: the prompt of each of its images, their size and noise levels."""

    prompts: Prompts
    texts: Sequence[str]
    grid: Grid
    settings: Settings


@dataclass(frozen=True)
class Encoder:
    """Everything that turns prompts into conditions on the device, for a backbone that takes them as they are."""

    device: Device
    architecture: Architecture
    extents: Extents
    residents: Residents
    encodings: CachedEncodings
    parts: Sequence[Part]
    marks: Marks
    together: bool
    """Whether all networks are on the device at once: evaluations are then recorded, and run when they are needed."""

    def ensure(self, wanted: Wanted) -> None:
        """Have what the backbone is fed of prompts in the cache. Raises BackendError."""
        self.encode(wanted.prompts, {part.port: wanted.texts for part in self.parts})

    def feed(self, group: Group, wanted: Wanted) -> int:
        """Put what stays the same into the backbone's inputs; returns the text tokens that it is fed."""
        tokens, width = self.feed_text(group, wanted, SEQUENCE)
        self.upload(group, BACKBONE, self.architecture.constants(tokens, width, wanted.grid))
        return width

    def feed_levels(self, group: Group, wanted: Wanted, first: int) -> None:
        """Put what the backbone is fed at each evaluation from ``first`` on into LEVELS, as many as it holds."""
        settings, count, manifest = wanted.settings, len(wanted.texts), self.architecture.manifest
        table = np.zeros((settings.nfe, aligned(level_bytes(manifest, count)) // 4), dtype=np.float32)
        levels = self.architecture.levels(settings.sigmas[:-1], settings.guidance, count)
        table[:, :count] = levels[level_port(manifest)].reshape(settings.nfe, count)
        self.device.upload(group.address(LEVELS), table[first:])

    def encode(self, prompts: Prompts, wanted: Mapping[str, Iterable[str]]) -> None:
        """Have encoders' parts in the cache, by port, of those texts of ``prompts``. Raises BackendError."""
        missing = {port: self.encodings.missing(port, texts) for port, texts in wanted.items()}
        for port, network in self.architecture.text_ports.items():
            if missing[port]:
                group = self.residents.need(network)
                for text in missing[port]:
                    with self.marks.stage("text"):
                        self._encode(group, network, text, prompts.ids[network], prompts.texts.index(text))

    def feed_text(self, group: Group, wanted: Wanted, port: str) -> tuple[list[int], int]:
        """Put the cached text of a batch into the backbone's input; tokens of each image, and those it is fed."""
        part = self.part(port)
        tokens = [self.encodings.tokens(port, text) for text in wanted.texts]
        width = self._width(max(tokens))
        start, token_bytes = group.address(port_buffer(BACKBONE, port)), part.size.token_bytes
        for place, (text, filled) in enumerate(zip(wanted.texts, tokens, strict=True)):
            address = start + place * width * token_bytes
            self.encodings.fetch(port, text, address)
            self._clear(group, address + filled * token_bytes, width - filled, token_bytes)
        return tokens, width

    def upload(self, group: Group, network: str, inputs: Mapping[str, NDArray[np.generic]]) -> None:
        """Put arrays into a network's inputs, by port."""
        for port, values in inputs.items():
            self.device.upload(group.address(port_buffer(network, port)), np.ascontiguousarray(values))

    def part(self, port: str) -> Part:
        return next(part for part in self.parts if part.port == port)

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
        self.upload(group, network, inputs)
        if self.together:
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
            self.encodings.put(part.port, prompt, address, tokens)

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
