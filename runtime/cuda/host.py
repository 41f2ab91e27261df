"""The pipeline on a GPU: everything on one stream, and the host waits for nothing but the images."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from engines.memory.buffers import BACKBONE
from engines.memory.extents import extents_of
from engines.memory.parts import MODULATION, PROMPTS, parts_of
from runtime.architectures import architecture_of
from runtime.cuda.execution.batch import DeviceBatch
from runtime.cuda.execution.conditioning import ConditionedEncoder
from runtime.cuda.execution.encoding import Encoder, Wanted
from runtime.cuda.execution.marks import Marks
from runtime.cuda.execution.ports import check_extents, check_types, field_type
from runtime.cuda.interface import Device
from runtime.cuda.memory.encodings import CachedEncodings, DeviceEncodings, HostEncodings
from runtime.cuda.memory.residents import Loader, Residents
from runtime.errors import BackendError
from runtime.hosts.batches import STAGES, Made, Prompts, collect, members_of, tokenize
from runtime.hosts.interface import CLOSED
from runtime.result import Generation, OnPreview, OnStep, Settings
from runtime.timing import Stopwatch

if TYPE_CHECKING:
    from engines.schema import Manifest
    from runtime.request import Request
    from runtime.text import PromptTokenizer


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
        embeddings: int = PROMPTS,
        after: Callable[[], object] = lambda: None,
        closing: Callable[[], None] = lambda: None,
    ) -> None:
        """Compose a host. The device becomes the host's own.

        loaders: put each network on the device; called now, or, with low_vram, when it is needed. backend: what
        runs it, for people. embeddings: prompts whose encodings are cached at least. after: called when new
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
            check_types(manifest)
            parts = parts_of(manifest, self._extents, embeddings)
            field_type(manifest)
            self._residents = Residents(
                device, manifest, self._extents, loaders, low_vram=low_vram, forget=self._marks.forget
            )
            self._encodings: CachedEncodings = (HostEncodings if low_vram else DeviceEncodings)(
                device, {part.port: part.size for part in parts}
            )
            self._encoder = (ConditionedEncoder if self._architecture.conditioned else Encoder)(
                device,
                self._architecture,
                self._extents,
                self._residents,
                self._encodings,
                parts,
                self._marks,
                together=not low_vram,
            )
            if not low_vram:
                self._residents.need(BACKBONE)
        except BaseException:
            device.close()
            raise
        # Contexts and engines go before the device, however the pipeline ends.
        self._close = weakref.finalize(self, _shut, self._residents, self._encodings, closing, device)

    def generate(
        self,
        request: Request,
        settings: Settings,
        on_step: OnStep | None = None,
        on_preview: OnPreview | None = None,
    ) -> Generation:
        """As :class:`runtime.hosts.interface.Host`. Stages but "tokenize" are timed on the device.

        Previews and ``on_step`` make the host wait between evaluations.
        """
        clock = Stopwatch(*STAGES)
        prompts = tokenize(self.tokenizers, request, clock)
        grid = self._architecture.grid(request.width, request.height)
        for count in {len(members) for members in members_of(self.manifest, request)}:
            sizes = self._architecture.sizes(prompts.ids, grid, count, settings.nfe)
            check_extents(self._extents, sizes, self._residents.encoders)
        with self._lock:
            made = self._generate(request, settings, prompts, clock, on_step, on_preview)
            self._after()
        return collect(made, settings, clock, prompts.warnings)

    def memory(self) -> dict[str, int]:
        """Bytes of the device's memory, by kind.

        weights, embeddings (all that is cached of prompts): held now. buffers: the arena, which is the peak of what
        buffers need at once; apart: what they would take if none shared its place. peak: weights and buffers together,
        at most so far.
        """
        return {**self._residents.memory(), "embeddings": self._encodings.device_bytes}

    def close(self) -> None:
        """Give everything on the device back; the pipeline must not be used any more. May be called twice."""
        with self._lock:
            self._close()

    def _generate(
        self,
        request: Request,
        settings: Settings,
        prompts: Prompts,
        clock: Stopwatch,
        on_step: OnStep | None,
        on_preview: OnPreview | None,
    ) -> list[Made]:
        if not self._close.alive:
            raise BackendError(CLOSED)
        self._marks.begin()
        grid = self._architecture.grid(settings.width, settings.height)
        if isinstance(self._encodings, HostEncodings):
            # What comes before the backbone is on the device once for all prompts of the request.
            self._encodings.grow(len(prompts.texts), {MODULATION: settings.nfe})
            self._encoder.ensure(Wanted(prompts, prompts.texts, grid, settings))
        made = []
        for members in members_of(self.manifest, request):
            texts = [prompts.texts[row] for row in prompts.rows[members.start : members.stop]]
            wanted = Wanted(prompts, texts, grid, settings)
            self._encoder.ensure(wanted)
            group = self._residents.need(BACKBONE)
            text = self._encoder.feed(group, wanted)
            feed_levels = partial(self._encoder.feed_levels, group, wanted)
            batch = DeviceBatch(
                self._device, self._architecture, group, self._marks, settings, members, text, feed_levels
            )
            made.append(batch.make(request, on_step, on_preview))
            self._marks.read(clock)
        return made


def _shut(residents: Residents, encodings: CachedEncodings, closing: Callable[[], None], device: Device) -> None:
    """Everything off the device, in the order in which it depends on the rest."""
    try:
        residents.close()
        closing()
        encodings.close()
    except BackendError:  # The device is gone, and its memory with it.
        return
    finally:
        device.close()
