"""One batch on the device: noise, an evaluation and a step of the solver for each segment, previews, the images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.manifest import Manifest
from runtime.architectures.base import Grid
from runtime.cuda.execution.feeding import Feeding, field_ports
from runtime.cuda.execution.marks import Marks
from runtime.cuda.interface import Advance, Device, Evaluation, Unpack
from runtime.cuda.memory.buffers import (
    BACKBONE,
    FOUND,
    PIXELS,
    STATE,
    TIMESTEP_STRIDE,
    TIMESTEPS,
    VAE,
    X,
    port_buffer,
)
from runtime.cuda.memory.extents import shape_of
from runtime.cuda.memory.residents import Group
from runtime.errors import BackendError
from runtime.result import Settings


@dataclass(frozen=True)
class Painted:
    """A batch: x float32 [B, image_tokens, channels], whether all of it is finite, images [B, height, width, 3]."""

    x: NDArray[np.float32]
    finite: bool
    pictures: NDArray[np.uint8]


class Painter:
    """A batch of one shape. Made for each batch: what lasts is in the engines, the arena and the recordings."""

    def __init__(
        self, device: Device, manifest: Manifest, feeding: Feeding, group: Group, marks: Marks, batch: int, grid: Grid
    ) -> None:
        self._device = device
        self._manifest = manifest
        self._feeding = feeding
        self._group = group
        self._marks = marks
        self._batch = batch
        self._grid = grid
        latent = manifest.latent
        self._height = grid.rows * latent.patch * latent.vae_factor
        self._width = grid.columns * latent.patch * latent.vae_factor
        self._channels = manifest.momentum.packed_channels
        self._field_type = field_ports(manifest)["means"].dtype
        self._stride = -(-max(TIMESTEP_STRIDE, batch * 4) // TIMESTEP_STRIDE) * TIMESTEP_STRIDE
        self._vae = self._bind_vae()
        self._backbone: Evaluation | None = None
        self._text = 0

    def feed(self, tokens: Sequence[int], width: int, settings: Settings, seeds: Sequence[int]) -> None:
        """Everything that the evaluations of this batch read, besides the encodings; the noise among it.

        tokens, width: as :meth:`runtime.cuda.execution.encoding.Encoder.feed` gave them. seeds: of each image.
        """
        inputs = self._feeding.host_inputs(tokens, width, settings.guidance, self._grid)
        self._text = width
        self._backbone = self._bind_backbone(width)
        for name, values in inputs.items():
            self._device.upload(self._at(port_buffer(BACKBONE, name)), values)
        table = np.zeros((settings.nfe, self._stride // 4), dtype=np.float32)
        table[:, : self._batch] = self._feeding.timesteps(settings.sigmas[:-1])[:, None]
        self._device.upload(self._at(TIMESTEPS), table)
        with self._marks.stage("noise"):
            values_each = self._grid.tokens * self._channels
            for place, seed in enumerate(seeds):
                self._device.normal(seed, values_each, self._at(X) + place * values_each * 4)

    def paint(self, sigmas: Sequence[float]) -> None:
        """All evaluations and the images, as one CUDA graph where that is possible; nothing waits."""

        def work() -> None:
            for index, (sigma_src, sigma_end) in enumerate(itertools.pairwise(sigmas)):
                self._segment(index, sigma_src, sigma_end)
            self._decode(self._at(X), check=True)

        self._marks.replay(self._key("picture", *sigmas), work)

    def evaluate(self, index: int) -> None:
        """One evaluation: the field of the segment, and the state at its start yet."""
        self._marks.replay(self._key("evaluation", index), lambda: self._evaluate(index))

    def preview(self, sigma_src: float, sigma: float) -> NDArray[np.uint8]:
        """The image of the state at ``sigma`` of the evaluated segment; waits."""
        self._advance(sigma_src, sigma, self._at(STATE))
        self._decode(self._at(STATE), check=False)
        return self._pictures()

    def advance(self, sigma_src: float, sigma_end: float) -> None:
        """The state at the end of the evaluated segment."""
        self._advance(sigma_src, sigma_end, self._at(X))

    def finish(self) -> None:
        """The images of the present state; nothing waits."""
        self._marks.replay(self._key("decode"), lambda: self._decode(self._at(X), check=True))

    def state(self) -> NDArray[np.float32]:
        """The present state; waits."""
        x = np.empty((self._batch, self._grid.tokens, self._channels), dtype=np.float32)
        self._device.download(self._at(X), x)
        return x

    def collect(self) -> Painted:
        """What :meth:`paint` or :meth:`finish` made; waits."""
        found = np.zeros(1, dtype=np.uint32)
        self._device.download(self._at(FOUND), found)
        return Painted(self.state(), not found[0], self._pictures())

    def _segment(self, index: int, sigma_src: float, sigma_end: float) -> None:
        self._evaluate(index)
        self._advance(sigma_src, sigma_end, self._at(X))

    def _evaluate(self, index: int) -> None:
        if self._backbone is None:
            raise BackendError("the batch was not fed")
        with self._marks.stage("backbone"):
            source = self._at(TIMESTEPS) + index * self._stride
            self._device.copy(self._at(port_buffer(BACKBONE, "timestep")), source, self._batch * 4)
            self._backbone.enqueue()

    def _advance(self, sigma_src: float, sigma: float, out: int) -> None:
        momentum = self._manifest.momentum
        with self._marks.stage("solver"):
            self._device.advance(
                Advance(
                    means=self._at(port_buffer(BACKBONE, "means")),
                    logweights=self._at(port_buffer(BACKBONE, "logweights")),
                    loggammas=self._at(port_buffer(BACKBONE, "loggammas")),
                    x=self._at(X),
                    out=out,
                    tokens=self._batch * self._grid.tokens,
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
        latent = self._manifest.latent
        with self._marks.stage("vae"):
            self._device.unpack(
                Unpack(
                    tokens=tokens,
                    latents=self._at(port_buffer(VAE, "latents")),
                    batch=self._batch,
                    rows=self._grid.rows,
                    columns=self._grid.columns,
                    channels=latent.channels,
                    patch=latent.patch,
                    scaling=latent.scaling_factor,
                    shift=latent.shift_factor,
                )
            )
            self._vae.enqueue()
            pictures = (self._batch, self._height, self._width)
            self._device.to_rgb8(self._at(port_buffer(VAE, "images")), self._at(PIXELS), pictures)
            if check:
                count = self._batch * self._grid.tokens * self._channels
                self._device.find_nonfinite(tokens, count, self._at(FOUND))

    def _pictures(self) -> NDArray[np.uint8]:
        pictures = np.empty((self._batch, self._height, self._width, 3), dtype=np.uint8)
        self._device.download(self._at(PIXELS), pictures)
        return pictures

    def _bind_backbone(self, width: int) -> Evaluation:
        dims = {"batch": self._batch, "image_tokens": self._grid.tokens, "text_tokens": width}
        spec = self._manifest.networks[BACKBONE]
        inputs, outputs = ({port.name: shape_of(port, dims) for port in ports} for ports in (spec.inputs, spec.outputs))
        return self._group.evaluation(BACKBONE, inputs, outputs)

    def _bind_vae(self) -> Evaluation:
        latent = self._manifest.latent
        rows, columns = self._grid.rows * latent.patch, self._grid.columns * latent.patch
        latents = (self._batch, latent.channels, rows, columns)
        images = (self._batch, 3, self._height, self._width)
        return self._group.evaluation(VAE, {"latents": latents}, {"images": images})

    def _key(self, *what: object) -> tuple[object, ...]:
        return (*what, self._batch, self._grid.rows, self._grid.columns, self._text)

    def _at(self, buffer: str) -> int:
        return self._group.address(buffer)
