"""One batch on the device: noise, an evaluation and a step of the solver for each segment, previews, the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engines.memory.arena import aligned
from engines.memory.buffers import (
    BACKBONE,
    FOUND,
    LEVELS,
    PIXELS,
    STATE,
    VAE,
    X,
    level_bytes,
    level_port,
    level_rows,
    port_buffer,
)
from engines.memory.extents import shape_of
from runtime.architectures.base import Architecture, Tokens
from runtime.cuda.execution.marks import Marks
from runtime.cuda.execution.ports import field_type
from runtime.cuda.interface import Advance, Device, Unpack
from runtime.cuda.memory.residents import Group
from runtime.errors import BackendError
from runtime.hosts.batches import NOT_FINITE, Batch
from runtime.result import Pixels, Settings


class DeviceBatch(Batch):
    """A batch of one shape. Made for each batch: what lasts is in the engines, the arena and the recordings."""

    def __init__(
        self,
        device: Device,
        architecture: Architecture,
        group: Group,
        marks: Marks,
        settings: Settings,
        members: range,
        text: int,
        feed_levels: Callable[[int], None],
    ) -> None:
        """The networks at the batch's shapes, and the noise. What is the same at each evaluation was fed before.

        text: text tokens that the backbone is fed. feed_levels: puts the rows from an evaluation on into LEVELS.
        """
        super().__init__(architecture, settings, members)
        self._device = device
        self._group = group
        self._marks = marks
        self._count = len(members)
        self._text = text
        self._feed_levels = feed_levels
        manifest, grid = architecture.manifest, self.grid
        self._values = grid.tokens * manifest.momentum.packed_channels
        """Values of the state of one image."""
        self._field_type = field_type(manifest)
        self._rows, self._row_bytes = level_rows(manifest), level_bytes(manifest, self._count)
        self._level_port = port_buffer(BACKBONE, level_port(manifest))
        rows, columns = grid.rows * manifest.latent.patch, grid.columns * manifest.latent.patch
        latents = (self._count, manifest.latent.channels, rows, columns)
        images = (self._count, 3, settings.height, settings.width)
        self._vae = group.evaluation(VAE, {"latents": latents}, {"images": images})
        dims = {"batch": self._count, "image_tokens": grid.tokens, "text_tokens": self._text}
        spec = manifest.networks[BACKBONE]
        inputs, outputs = ({port.name: shape_of(port, dims) for port in ports} for ports in (spec.inputs, spec.outputs))
        self._backbone = group.evaluation(BACKBONE, inputs, outputs)
        with marks.stage("noise"):
            for place, member in enumerate(members):
                device.normal(settings.seeds[member], self._values, self._at(X) + place * self._values * 4)

    def run(self) -> tuple[Tokens, Sequence[Pixels]]:
        """All evaluations and the images; as one CUDA graph where that is possible and LEVELS holds all rows."""
        if self.settings.nfe > self._rows:
            return super().run()

        def work() -> None:
            for index in range(self.settings.nfe):
                self._evaluate(index)
                self.advance(index)
            self._decode(self._at(X), check=True)

        self._feed_levels(0)
        self._marks.replay(self._key("images", *self.settings.sigmas), work)
        return self._collect()

    def evaluate(self, index: int) -> None:
        row = index % self._rows
        if row == 0:
            self._feed_levels(index)
        self._marks.replay(self._key("evaluation", row), lambda: self._evaluate(row))

    def advance(self, index: int) -> None:
        self._advance(index, self.settings.sigmas[index + 1], self._at(X))

    def preview(self, index: int, sigma: float) -> Sequence[Pixels]:
        self._advance(index, sigma, self._at(STATE))
        self._decode(self._at(STATE), check=False)
        return tuple(self._images())

    def finish(self) -> tuple[Tokens, Sequence[Pixels]]:
        self._marks.replay(self._key("decode"), lambda: self._decode(self._at(X), check=True))
        return self._collect()

    def state(self) -> Tokens:
        channels = self.architecture.manifest.momentum.packed_channels
        x = np.empty((self._count, self.grid.tokens, channels), dtype=np.float32)
        self._device.download(self._at(X), x)
        return x

    def _collect(self) -> tuple[Tokens, Sequence[Pixels]]:
        """What was decoded with a check; waits."""
        found = np.zeros(1, dtype=np.uint32)
        self._device.download(self._at(FOUND), found)
        if found[0]:
            raise BackendError(NOT_FINITE)
        return self.state(), tuple(self._images())

    def _evaluate(self, row: int) -> None:
        with self._marks.stage("backbone"):
            # A copy of a few microseconds: each other address would be a context with memory of its own.
            source = self._at(LEVELS) + row * aligned(self._row_bytes)
            self._device.copy(self._at(self._level_port), source, self._row_bytes)
            self._backbone.enqueue()

    def _advance(self, index: int, sigma: float, out: int) -> None:
        momentum, sigma_src = self.architecture.manifest.momentum, self.settings.sigmas[index]
        with self._marks.stage("solver"):
            self._device.advance(
                Advance(
                    means=self._at(port_buffer(BACKBONE, "means")),
                    logweights=self._at(port_buffer(BACKBONE, "logweights")),
                    loggammas=self._at(port_buffer(BACKBONE, "loggammas")),
                    x=self._at(X),
                    out=out,
                    tokens=self._count * self.grid.tokens,
                    modes=momentum.modes,
                    channels=momentum.packed_channels,
                    positions=momentum.patch_positions,
                    sigma_src=sigma_src,
                    sigma_a=sigma_src,
                    sigma_b=sigma,
                    dtype=self._field_type,
                )
            )

    def _decode(self, tokens: int, *, check: bool) -> None:
        latent = self.architecture.manifest.latent
        with self._marks.stage("vae"):
            self._device.unpack(
                Unpack(
                    tokens=tokens,
                    latents=self._at(port_buffer(VAE, "latents")),
                    batch=self._count,
                    rows=self.grid.rows,
                    columns=self.grid.columns,
                    channels=latent.channels,
                    patch=latent.patch,
                    scaling=latent.scaling_factor,
                    shift=latent.shift_factor,
                )
            )
            self._vae.enqueue()
            shape = (self._count, self.settings.height, self.settings.width)
            self._device.to_rgb8(self._at(port_buffer(VAE, "images")), self._at(PIXELS), shape)
            if check:
                self._device.find_nonfinite(tokens, self._count * self._values, self._at(FOUND))

    def _images(self) -> NDArray[np.uint8]:
        images = np.empty((self._count, self.settings.height, self.settings.width, 3), dtype=np.uint8)
        self._device.download(self._at(PIXELS), images)
        return images

    def _key(self, *what: object) -> tuple[object, ...]:
        return (*what, self._count, self.grid.rows, self.grid.columns, self._text)

    def _at(self, buffer: str) -> int:
        return self._group.address(buffer)
