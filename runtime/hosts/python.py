"""``host="python"``: networks in ONNX Runtime, noise and solver in numpy."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from runtime import noise, solver
from runtime.architectures.base import Conditions, Tokens
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
    weight_bytes,
)
from runtime.hosts.onnx_network import Network, describe, open_onnxruntime
from runtime.networks import Networks
from runtime.result import Generation, OnStep, Picture, Settings
from runtime.text import PromptTokenizer, load_tokenizers
from runtime.timing import Stopwatch

if TYPE_CHECKING:
    from engines.bundle import Bundle
    from engines.manifest import Manifest
    from runtime.request import Request


def open_python(bundle: Bundle, *, threads: int, device: str) -> PythonHost:
    """Load an opened bundle of ONNX files. device: "cpu", "cuda" or "cuda:N". Raises BundleError, BackendError."""
    manifest = bundle.manifest
    networks = {
        name: open_onnxruntime(
            name, bundle.read(spec.file), spec, threads, {path: bundle.map(path) for path in spec.data}, device
        )
        for name, spec in manifest.networks.items()
    }
    return PythonHost(manifest, networks, load_tokenizers(bundle), backend=describe(networks.values()))


class PythonHost:
    """A bundle of ONNX files. Made by :func:`open_python`; tests compose one from parts."""

    def __init__(
        self,
        manifest: Manifest,
        networks: Mapping[str, Network],
        tokenizers: Mapping[str, PromptTokenizer],
        *,
        backend: str = "",
    ) -> None:
        self.manifest = manifest
        self.networks: Networks | None = Networks(manifest, networks)
        self.tokenizers = tokenizers
        self.backend = backend

    def generate(self, request: Request, settings: Settings, on_step: OnStep | None) -> Generation:
        """As :class:`runtime.hosts.interface.Host`. The networks' own errors are BackendErrors too."""
        if (networks := self.networks) is None:
            raise BackendError(CLOSED)
        clock = Stopwatch(*STAGES)
        conditions, warnings = self._encode(networks, request.prompts, clock)
        made = []
        for members in batches(request, self.manifest.limits.batch.max):
            rows = conditions.rows([j // request.num_images for j in members])
            made.append(self._run(networks, request, settings, members, rows, clock, on_step))
        return collect(made, settings, clock, warnings)

    def memory(self) -> Mapping[str, int]:
        """weights: bytes of the networks' files; ONNX Runtime does not say what it made of them."""
        return {"weights": 0 if self.networks is None else weight_bytes(self.manifest)}

    def close(self) -> None:
        """Let the networks go; a generation that runs ends first."""
        self.networks = None

    def _encode(
        self, networks: Networks, prompts: Sequence[str], clock: Stopwatch
    ) -> tuple[Conditions, tuple[str, ...]]:
        """The encodings of every prompt, equal prompts encoded once, and a warning for each that was cut."""
        unique = list(dict.fromkeys(prompts))
        with clock.stage("tokenize"):
            ids = {name: tokenizer(unique) for name, tokenizer in self.tokenizers.items()}
        warnings = tuple(str(truncation) for tokens in ids.values() for truncation in tokens.truncations)
        with clock.stage("text"):
            conditions: Conditions = networks.encode(ids)
        position = {text: row for row, text in enumerate(unique)}
        return conditions.rows([position[text] for text in prompts]), warnings

    def _run(
        self,
        networks: Networks,
        request: Request,
        settings: Settings,
        members: range,
        conditions: Conditions,
        clock: Stopwatch,
        on_step: OnStep | None,
    ) -> Batch:
        """Noise, one evaluation of the backbone a segment with its previews, and the images."""
        manifest, architecture = self.manifest, networks.architecture
        grid = architecture.grid(settings.width, settings.height)
        with clock.stage("noise"):
            channels = manifest.momentum.packed_channels
            x = np.stack([noise.normal(settings.seeds[j], grid.tokens, channels) for j in members])
        frames: list[tuple[float, tuple[Picture, ...]]] = []
        for index, (sigma_src, sigma_end) in enumerate(itertools.pairwise(settings.sigmas)):
            with clock.stage("backbone"):
                field = networks.evaluate(x, sigma_src, settings.guidance, conditions, grid)
            for sigma in preview_sigmas(manifest, request, sigma_src, sigma_end):
                with clock.stage("solver"):
                    state = _advance(x, field, sigma_src, sigma)
                with clock.stage("vae"):
                    frames.append((sigma, networks.decode(state, grid)))
            with clock.stage("solver"):
                x = _advance(x, field, sigma_src, sigma_end)
            if on_step is not None:
                on_step(step_of(manifest, request, settings, members, index, architecture.latents(x, grid)))
        if not np.isfinite(x).all():
            raise BackendError(NOT_FINITE)
        with clock.stage("vae"):
            images = networks.decode(x, grid)
        return Batch(images, architecture.latents(x, grid), frames_by_image(frames, len(images)))


def _advance(x: Tokens, field: solver.MomentumField, sigma_src: float, sigma: float) -> Tokens:
    """The state at ``sigma``, from ``x`` at the start of the segment."""
    return (x + solver.displacement(field, sigma_src, sigma_src, sigma)).astype(np.float32, copy=False)
