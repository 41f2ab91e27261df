"""The pipeline on a GPU: everything on one stream, and the host waits for nothing but the images."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from runtime.architectures import architecture_of
from runtime.cuda.execution.batch import Painter
from runtime.cuda.execution.encoding import Encoder, Prompts
from runtime.cuda.execution.feeding import Feeding, field_ports
from runtime.cuda.execution.marks import Marks
from runtime.cuda.interface import Device
from runtime.cuda.memory.buffers import BACKBONE
from runtime.cuda.memory.encodings import DeviceEmbeddings, Embeddings, HostEmbeddings, prompt_digest
from runtime.cuda.memory.extents import check_extents, extents_of
from runtime.cuda.memory.residents import Loader, Residents
from runtime.errors import BackendError
from runtime.hosts.interface import (
    CLOSED,
    NOT_FINITE,
    STAGES,
    Batch,
    batches,
    collect,
    frames_by_image,
    preview_sigmas,
    step_of,
)
from runtime.result import Generation, OnStep, Picture, Settings
from runtime.timing import Stopwatch

if TYPE_CHECKING:
    from engines.manifest import Manifest
    from runtime.request import Request
    from runtime.text import PromptTokenizer

EMBEDDINGS = 16
"""Encodings of prompts that are kept, unless a batch or a caller wants more."""


class CudaHost:
    """A bundle of plans on a GPU. Made by :func:`runtime.cuda.opening.open_cuda`. Several threads take turns.

    One session: a stream, an arena and the recordings. Weights are shared with the other sessions of the process.
    """

    def __init__(
        self,
        manifest: Manifest,
        device: Device,
        loaders: Mapping[str, Loader],
        tokenizers: Mapping[str, PromptTokenizer],
        *,
        backend: str,
        low_vram: bool = False,
        embeddings: int = EMBEDDINGS,
        after: Callable[[], None] = lambda: None,
        closing: Callable[[], None] = lambda: None,
    ) -> None:
        """Compose a host. The device becomes the host's own.

        loaders: put each network on the device; called now, or, with low_vram, when it is needed. backend: what
        runs it, for people. embeddings: encodings of prompts that are kept at least. after: called when new
        evaluations were made. closing: called when the engines are gone. Raises BackendError, DeviceMemoryError.
        """
        self.manifest = manifest
        self.backend = backend
        self.tokenizers = tokenizers
        self._architecture = architecture_of(manifest)
        self._device = device
        self._after = after
        self._lock = threading.Lock()
        self._marks = Marks(device)
        try:
            self._extents = extents_of(manifest)
            self._feeding = Feeding(manifest, self._extents)
            field_ports(manifest)
            self._residents = Residents(
                device, manifest, self._extents, loaders, low_vram=low_vram, forget=self._marks.forget
            )
            parts = {part.port: part.size for part in self._feeding.parts}
            most = max(embeddings, manifest.limits.batch.max)
            self._embeddings: Embeddings = (HostEmbeddings if low_vram else DeviceEmbeddings)(device, parts, most)
            self._encoder = Encoder(
                device,
                manifest,
                self._extents,
                self._residents,
                self._embeddings,
                self._feeding,
                self._marks,
                replays=not low_vram,
            )
            if not low_vram:
                self._residents.need(BACKBONE)
        except BaseException:
            device.close()
            raise
        # Contexts and engines go before the device, however the pipeline ends.
        self._close = weakref.finalize(self, _shut, self._residents, self._embeddings, closing, device)

    def generate(self, request: Request, settings: Settings, on_step: OnStep | None) -> Generation:
        """As :class:`runtime.hosts.interface.Host`. Stages but "tokenize" are timed on the device.

        Previews and ``on_step`` make the host wait between evaluations.
        """
        clock = Stopwatch(*STAGES)
        unique = list(dict.fromkeys(request.prompts))
        with clock.stage("tokenize"):
            ids = {name: tokenizer(unique) for name, tokenizer in self.tokenizers.items()}
        grid = self._architecture.grid(request.width, request.height)
        for batch in {len(members) for members in batches(request, self.manifest.limits.batch.max)}:
            check_extents(self._extents, self._architecture.sizes(ids, grid, batch), self._residents.encoders)
        prompts = Prompts(tuple(prompt_digest(text) for text in unique), ids)
        with self._lock:
            made = self._generate(request, settings, prompts, clock, on_step)
            self._after()
        warnings = tuple(str(truncation) for tokens in ids.values() for truncation in tokens.truncations)
        return collect(made, settings, clock, warnings)

    def memory(self) -> dict[str, int]:
        """Bytes of the device's memory, by kind.

        weights, embeddings: held now. buffers: the arena, which is the peak of what buffers need at once; apart: what
        they would take if none shared its place. peak: weights and buffers together, at most so far.
        """
        plans = self._residents.plans
        return {
            "weights": self._residents.weight_bytes,
            "buffers": sum(plan.size for plan in plans),
            "apart": sum(plan.apart for plan in plans),
            "embeddings": self._embeddings.device_bytes,
            "peak": self._residents.peak,
        }

    def close(self) -> None:
        """Give everything on the device back; the pipeline must not be used any more. May be called twice."""
        with self._lock:
            self._close()

    def _generate(
        self, request: Request, settings: Settings, prompts: Prompts, clock: Stopwatch, on_step: OnStep | None
    ) -> list[Batch]:
        if not self._close.alive:
            raise BackendError(CLOSED)
        self._marks.begin()
        row_of = {text: row for row, text in enumerate(dict.fromkeys(request.prompts))}
        rows = [row_of[settings.prompts[j]] for j in range(request.total)]
        if isinstance(self._embeddings, HostEmbeddings):
            # Encoders are on the device once for all prompts of the request.
            self._embeddings.grow(len(row_of))
            self._encoder.ensure(prompts, rows)
        made = []
        for members in batches(request, self.manifest.limits.batch.max):
            self._encoder.ensure(prompts, rows[members.start : members.stop])
            made.append(self._run(request, settings, members, prompts, rows, on_step))
            self._marks.read(clock)
        return made

    def _run(
        self,
        request: Request,
        settings: Settings,
        members: range,
        prompts: Prompts,
        rows: Sequence[int],
        on_step: OnStep | None,
    ) -> Batch:
        """The images ``members``: their noise, one evaluation a segment with its previews, and the VAE."""
        grid = self._architecture.grid(settings.width, settings.height)
        group = self._residents.need(BACKBONE)
        painter = Painter(self._device, self.manifest, self._feeding, group, self._marks, len(members), grid)
        tokens, width = self._encoder.feed(group, prompts, rows[members.start : members.stop])
        painter.feed(tokens, width, settings, settings.seeds[members.start : members.stop])
        frames: list[tuple[float, tuple[Picture, ...]]] = []
        if on_step is None and not request.previews:
            painter.paint(settings.sigmas)
        else:
            for index, (sigma_src, sigma_end) in enumerate(itertools.pairwise(settings.sigmas)):
                painter.evaluate(index)
                levels = preview_sigmas(self.manifest, request, sigma_src, sigma_end)
                frames += [(sigma, tuple(painter.preview(sigma_src, sigma))) for sigma in levels]
                painter.advance(sigma_src, sigma_end)
                if on_step is not None:
                    latents = self._architecture.latents(painter.state(), grid)
                    on_step(step_of(self.manifest, request, settings, members, index, latents))
            painter.finish()
        made = painter.collect()
        if not made.finite:
            raise BackendError(NOT_FINITE)
        latents = self._architecture.latents(made.x, grid)
        return Batch(tuple(made.pictures), latents, frames_by_image(frames, len(members)))


def _shut(residents: Residents, embeddings: Embeddings, closing: Callable[[], None], device: Device) -> None:
    """Everything off the device, in the order in which it depends on the rest."""
    try:
        residents.close()
        closing()
        embeddings.close()
    except BackendError:  # The device is gone, and its memory with it.
        return
    finally:
        device.close()
