"""The pipeline on a GPU: everything on one stream, and the host waits for nothing but the pictures."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.manifest import Manifest
from runtime.architecture import networks_of
from runtime.cuda.buffers import BACKBONE
from runtime.cuda.embeddings import DeviceEmbeddings, Embeddings, HostEmbeddings, prompt_digest
from runtime.cuda.encoding import Encoder, Prompts
from runtime.cuda.extents import check_extents, extents_of
from runtime.cuda.feeding import Feeding, field_ports
from runtime.cuda.interface import Device
from runtime.cuda.marks import Marks
from runtime.cuda.painting import Painter
from runtime.cuda.residents import Loader, Residents
from runtime.errors import BackendError
from runtime.pipeline import Pipeline
from runtime.request import Request, check_request
from runtime.result import Generation, OnStep, Picture, Preview, Settings
from runtime.settings import settings_of
from runtime.text import PromptTokenizer
from runtime.timing import Stopwatch

EMBEDDINGS = 16
"""Encodings of prompts that are kept, unless a batch or a caller wants more."""

_STAGES = ("tokenize", "text", "noise", "backbone", "solver", "vae")


@dataclass(frozen=True)
class _Painted:
    images: tuple[Picture, ...]
    latents: NDArray[np.float32]
    previews: tuple[tuple[Preview, ...], ...]


class CudaPipeline(Pipeline):
    """A bundle on a GPU. Made by :meth:`Pipeline.open`. Several threads may call it; they take turns.

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
        """Compose a pipeline; most callers want :meth:`Pipeline.open`. The device becomes the pipeline's own.

        loaders: put each network on the device; called now, or, with low_vram, when it is needed. backend: what
        runs it, for people. embeddings: encodings of prompts that are kept at least. after: called when new
        evaluations were made. closing: called when the engines are gone. Raises BackendError, DeviceMemoryError.
        """
        self.manifest = manifest
        self._backend = backend
        self._networks = networks_of(manifest, {})
        self._tokenizers = tokenizers
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

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int = 0,
        nfe: int | None = None,
        num_images: int = 1,
        width: int | None = None,
        height: int | None = None,
        previews: int = 0,
        on_step: OnStep | None = None,
    ) -> Generation:
        """As :meth:`Pipeline.generate`. Stages but "tokenize" are timed on the device.

        Previews and ``on_step`` make the host wait between evaluations. ``on_step`` must not call the pipeline.
        """
        request = check_request(
            self.manifest,
            prompt,
            seed=seed,
            nfe=nfe,
            num_images=num_images,
            width=width,
            height=height,
            previews=previews,
        )
        settings = settings_of(self.manifest, request)
        clock = Stopwatch(*_STAGES)
        unique = list(dict.fromkeys(request.prompts))
        with clock.stage("tokenize"):
            ids = {name: tokenizer(unique) for name, tokenizer in self._tokenizers.items()}
        grid = self._networks.grid(request.width, request.height)
        most = self.manifest.limits.batch.max
        for batch in {min(request.total, most), request.total % most or most}:  # The last one may be smaller.
            if batch <= request.total:
                check_extents(self._extents, self._networks.sizes(ids, grid, batch), self._residents.encoders)
        prompts = Prompts(tuple(prompt_digest(text) for text in unique), ids)
        with self._lock:
            results = self._generate(request, settings, prompts, clock, on_step)
            self._after()
        return Generation(
            images=tuple(image for result in results for image in result.images),
            latents=np.concatenate([result.latents for result in results]),
            previews=tuple(frames for result in results for frames in result.previews),
            settings=settings,
            timings=dict(clock.seconds),
            warnings=tuple(str(truncation) for tokens in ids.values() for truncation in tokens.truncations),
            spans=tuple(clock.spans),
        )

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
    ) -> list[_Painted]:
        if not self._close.alive:
            raise BackendError("the pipeline is closed: open it again")
        self._marks.begin()
        row_of = {text: row for row, text in enumerate(dict.fromkeys(request.prompts))}
        rows = [row_of[settings.prompts[j]] for j in range(request.total)]
        if isinstance(self._embeddings, HostEmbeddings):
            # Encoders are on the device once for all prompts of the request.
            self._embeddings.grow(len(row_of))
            self._encoder.ensure(prompts, rows)
        most = self.manifest.limits.batch.max
        results = []
        for first in range(0, request.total, most):
            members = range(first, min(first + most, request.total))
            self._encoder.ensure(prompts, rows[members.start : members.stop])
            results.append(self._paint(request, settings, members, prompts, rows, on_step))
            self._marks.read(clock)
        return results

    def _paint(
        self,
        request: Request,
        settings: Settings,
        members: range,
        prompts: Prompts,
        rows: Sequence[int],
        on_step: OnStep | None,
    ) -> _Painted:
        """The pictures ``members``: their noise, one evaluation a segment with its previews, and the VAE."""
        grid = self._networks.grid(settings.width, settings.height)
        group = self._residents.need(BACKBONE)
        painter = Painter(self._device, self.manifest, self._feeding, group, self._marks, len(members), grid)
        tokens, width = self._encoder.feed(group, prompts, rows[members.start : members.stop])
        painter.feed(tokens, width, settings, settings.seeds[members.start : members.stop])
        frames: list[tuple[float, NDArray[np.uint8]]] = []
        if on_step is None and not request.previews:
            painter.paint(settings.sigmas)
        else:
            for index, (sigma_src, sigma_end) in enumerate(itertools.pairwise(settings.sigmas)):
                painter.evaluate(index)
                levels = self._preview_sigmas(request.previews, sigma_src, sigma_end)
                frames += [(sigma, painter.preview(sigma_src, sigma)) for sigma in levels]
                painter.advance(sigma_src, sigma_end)
                if on_step is not None:
                    latents = self._networks.latents(painter.state(), grid)
                    on_step(self._step(request, settings, members, index, latents))
            painter.finish()
        made = painter.collect()
        if not made.finite:
            raise BackendError("the networks gave values that are not finite; check it: python -m engines.verify")
        previews = tuple(
            tuple(Preview(sigma, pictures[row]) for sigma, pictures in frames) for row in range(len(members))
        )
        return _Painted(tuple(made.pictures), self._networks.latents(made.x, grid), previews)


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
