"""From prompts to pictures: tokenizers, text encoders, the backbone with the solver between, the VAE decoder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engines.bundle import Bundle, open_bundle
from engines.errors import BundleError
from engines.locate import locate, serves
from engines.manifest import Manifest
from engines.schema import SOURCE_TARGET
from runtime import noise, solver
from runtime.architecture import Conditions, Grid, Tokens, networks_of
from runtime.backend import Network, default_threads, describe, open_onnxruntime
from runtime.errors import BackendError, RequestError
from runtime.request import Request, check_request
from runtime.result import Generation, OnStep, Picture, Preview, Settings, Step
from runtime.settings import settings_of
from runtime.text import PromptTokenizer
from runtime.timing import Stopwatch

DEFAULT_MODEL = "tiny"
HOSTS = ("python", "native")
BACKENDS = ("tensorrt", "onnxruntime")
_STAGES = ("tokenize", "text", "noise", "backbone", "solver", "vae")
_CPU = "cpu"
_MAX_THREADS = 1024


class Pipeline:
    """A loaded bundle, ready to generate. Open one with :meth:`open`. Safe to call from several threads."""

    def __init__(
        self, manifest: Manifest, networks: Mapping[str, Network], tokenizers: Mapping[str, PromptTokenizer]
    ) -> None:
        """Compose a pipeline from parts that are already loaded; most callers want :meth:`open`."""
        self.manifest = manifest
        self._networks = networks_of(manifest, networks)
        self._tokenizers = tokenizers
        self._backend = ""

    @property
    def backend(self) -> str:
        """What runs the networks: "ONNX Runtime 1.32.0, CPU, 2 threads"; "" where that was not said."""
        return self._backend

    @classmethod
    def open(
        cls,
        source: str | Path = DEFAULT_MODEL,
        *,
        precision: str | None = None,
        target: str | None = None,
        threads: int | None = None,
        host: Literal["python", "native"] = "python",
        backend: str | None = None,
        device: str | None = None,
        low_vram: bool = False,
    ) -> Pipeline:
        """Verify and load a bundle.

        source: a model's name ("tiny"), looked up by :func:`engines.locate.locate`; or a bundle's folder: a Path, or
        a string with a path separator in it. precision, target: which of the model's bundles ("fp32", "cpu").
        threads: compute threads a network (default: the cores, at most 8).
        host: what runs it: this package, or the C++ core (the extra `native`), with the same results.
        backend: what runs the networks: "tensorrt" (plans, on a GPU) or "onnxruntime" (ONNX files); default: what the
        bundle is made of. device: "cpu", "cuda" or "cuda:N"; default: what the bundle is for. low_vram: text encoders
        and the other networks take turns on the GPU (plans only).
        Raises BundleError (missing, altered, of another kind or machine), BackendError (cannot be loaded; no such GPU),
        FlavourError (TensorRT is not installed), RequestError.
        """
        count = default_threads() if threads is None else threads
        if not 1 <= count <= _MAX_THREADS:
            raise RequestError(f"threads is {count}; it must be from 1 to {_MAX_THREADS}")
        if host not in HOSTS:
            raise RequestError(f"host is {host!r}; it must be one of {', '.join(HOSTS)}")
        bundle = _open_bundle(source, precision, target)
        manifest = bundle.manifest
        if host == "native":
            if backend is not None or device is not None or low_vram:
                raise RequestError("backend, device and low_vram are for host='python'; leave them out")
            from runtime.native_host import NativePipeline

            return NativePipeline.load(bundle, threads=count)
        ordinal = _check_choice(bundle, backend, device, low_vram)
        if manifest.engine is not None:
            from runtime.cuda.opening import open_cuda

            return open_cuda(bundle, ordinal=ordinal or 0, low_vram=low_vram)
        tokenizers = {
            name: PromptTokenizer(name, bundle.read(spec.file), spec) for name, spec in manifest.tokenizers.items()
        }
        networks = {
            name: open_onnxruntime(
                name,
                bundle.read(spec.file),
                spec,
                count,
                {path: bundle.map(path) for path in spec.data},
                device or _CPU,
            )
            for name, spec in manifest.networks.items()
        }
        pipeline = cls(manifest, networks, tokenizers)
        pipeline._backend = describe(networks.values())
        return pipeline

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
        """Make pictures.

        prompt: one prompt or several. seed: 0 .. 2^64 - 1; picture j of the request starts from the noise of
        seed + j. nfe: network evaluations (default: the bundle's). num_images: pictures a prompt; more than the
        bundle's batch are made in several batches. width, height: pixels. previews: frames at that many noise levels
        between noise and picture, by the closed form (no further evaluation of the backbone).
        on_step: called after each evaluation; what it raises ends the generation.
        The same arguments give the same bytes. Raises RequestError before anything runs, BackendError after.
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
        clock = Stopwatch(*_STAGES)
        settings = settings_of(self.manifest, request)
        conditions, warnings = self._encode(request.prompts, clock)
        most = self.manifest.limits.batch.max
        results = []
        for first in range(0, request.total, most):
            members = range(first, min(first + most, request.total))
            batch = _Batch(request, settings, members, conditions.rows([j // request.num_images for j in members]))
            results.append(self._run(batch, clock, on_step))
        return Generation(
            images=tuple(image for result in results for image in result.images),
            latents=np.concatenate([result.latents for result in results]),
            previews=tuple(frames for result in results for frames in result.previews),
            settings=settings,
            timings=dict(clock.seconds),
            warnings=warnings,
            spans=tuple(clock.spans),
        )

    def sizes(
        self, prompt: str | Sequence[str], *, num_images: int = 1, width: int | None = None, height: int | None = None
    ) -> dict[str, dict[str, int]]:
        """For each network the symbolic dimensions of its inputs in such a request: what its cost depends on.

        Nothing runs. Raises RequestError.
        """
        request = check_request(self.manifest, prompt, num_images=num_images, width=width, height=height)
        ids = {name: tokenizer(request.prompts) for name, tokenizer in self._tokenizers.items()}
        batch = min(request.total, self.manifest.limits.batch.max)
        return self._networks.sizes(ids, self._networks.grid(request.width, request.height), batch)

    def _encode(self, prompts: Sequence[str], clock: Stopwatch) -> tuple[Conditions, tuple[str, ...]]:
        """Both encodings of every prompt, equal prompts encoded once, and a warning for each that was cut."""
        unique = list(dict.fromkeys(prompts))
        with clock.stage("tokenize"):
            ids = {name: tokenizer(unique) for name, tokenizer in self._tokenizers.items()}
        warnings = tuple(str(truncation) for tokens in ids.values() for truncation in tokens.truncations)
        with clock.stage("text"):
            conditions: Conditions = self._networks.encode(ids)
        position = {text: row for row, text in enumerate(unique)}
        return conditions.rows([position[text] for text in prompts]), warnings

    def _run(self, batch: _Batch, clock: Stopwatch, on_step: OnStep | None) -> _BatchResult:
        """Noise, one evaluation of the backbone a segment with its previews, and the pictures."""
        settings, networks = batch.settings, self._networks
        grid = networks.grid(settings.width, settings.height)
        with clock.stage("noise"):
            x = batch.noise(grid, self.manifest.momentum.packed_channels)
        frames: list[tuple[float, tuple[Picture, ...]]] = []
        for index, (sigma_src, sigma_end) in enumerate(itertools.pairwise(settings.sigmas)):
            with clock.stage("backbone"):
                field = networks.evaluate(x, sigma_src, settings.guidance, batch.conditions, grid)
            for sigma in self._preview_sigmas(batch.request.previews, sigma_src, sigma_end):
                with clock.stage("solver"):
                    state = _advance(x, field, sigma_src, sigma)
                with clock.stage("vae"):
                    frames.append((sigma, networks.decode(state, grid)))
            with clock.stage("solver"):
                x = _advance(x, field, sigma_src, sigma_end)
            if on_step is not None:
                on_step(self._step(batch.request, settings, batch.members, index, networks.latents(x, grid)))
        if not np.isfinite(x).all():
            raise BackendError("the networks gave values that are not finite; check it: python -m engines.verify")
        with clock.stage("vae"):
            images = networks.decode(x, grid)
        previews = tuple(
            tuple(Preview(sigma, pictures[row]) for sigma, pictures in frames) for row in range(len(images))
        )
        return _BatchResult(images, networks.latents(x, grid), previews)

    def _preview_sigmas(self, count: int, sigma_src: float, sigma_end: float) -> list[float]:
        levels = solver.preview_sigmas(count, self.manifest.schedule.shift)
        return [sigma for sigma in levels if sigma_end <= sigma < sigma_src]

    def _step(
        self, request: Request, settings: Settings, members: range, index: int, latents: NDArray[np.float32]
    ) -> Step:
        """Evaluation ``index`` of the pictures ``members`` is done."""
        most = self.manifest.limits.batch.max
        batches = -(-request.total // most)
        return Step(
            index=members.start // most * settings.nfe + index,
            total=batches * settings.nfe,
            first_image=members.start,
            sigma_from=settings.sigmas[index],
            sigma_to=settings.sigmas[index + 1],
            latents=latents,
        )


@dataclass(frozen=True)
class _Batch:
    """The pictures of a request that go through the networks together: ``members`` of its ``total``."""

    request: Request
    settings: Settings
    members: range
    conditions: Conditions

    def noise(self, grid: Grid, channels: int) -> Tokens:
        """Each picture's own noise, float32 [B, tokens, channels]."""
        return np.stack([noise.normal(self.settings.seeds[j], grid.tokens, channels) for j in self.members])


@dataclass(frozen=True)
class _BatchResult:
    images: tuple[Picture, ...]
    latents: NDArray[np.float32]
    previews: tuple[tuple[Preview, ...], ...]


def _advance(x: Tokens, field: solver.MomentumField, sigma_src: float, sigma: float) -> Tokens:
    """The state at ``sigma``, from ``x`` at the start of the segment."""
    return (x + solver.displacement(field, sigma_src, sigma_src, sigma)).astype(np.float32, copy=False)


def _open_bundle(source: str | Path, precision: str | None, target: str | None) -> Bundle:
    """The verified bundle that ``source`` names, held to the precision and target that were asked for."""
    if isinstance(source, Path) or _is_path(source):
        bundle = open_bundle(Path(source), contents="when used")
    else:
        folder = locate(source, precision, target)
        bundle = open_bundle(folder, contents="when used")
        if str(bundle.name) != folder.name:
            raise BundleError(f"{folder} holds {bundle.name}, not what its name says: rename it, or open it by path")
    for asked, fits in ((precision, precision == bundle.name.precision), (target, serves(bundle.name, target or ""))):
        if asked is not None and not fits:
            raise BundleError(f"{bundle.root} is {bundle.name}, but {asked!r} was asked for")
    return bundle


def _check_choice(bundle: Bundle, backend: str | None, device: str | None, low_vram: bool) -> int | None:
    """The number of the GPU that runs ``bundle``, None for the CPU. Raises RequestError, BackendError."""
    if backend is not None and backend not in BACKENDS:
        raise RequestError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    ordinal = None
    if device is not None:
        from runtime.onnx_cuda import ordinal_of

        ordinal = ordinal_of(device)
    name, root = bundle.name, bundle.root
    if bundle.manifest.engine is not None:
        if backend == "onnxruntime" or device == _CPU:
            raise BackendError(f"{root} holds TensorRT plans, which run on a GPU by TensorRT alone; {_instead(bundle)}")
        return ordinal or 0
    if backend == "tensorrt":
        raise BackendError(
            f"{root} holds ONNX files, and TensorRT runs plans: name a bundle of plans (--target sm89, ...), or build "
            f"one: python -m export.build --model {name.model} --precision {name.precision} --target TARGET"
        )
    if low_vram:
        raise RequestError("low_vram is for TensorRT plans; leave it out")
    if name.target == SOURCE_TARGET and ordinal is None:
        raise BackendError(f"{root} is for target {name.target!r} (ONNX files for building plans); {_instead(bundle)}")
    return ordinal


def _instead(bundle: Bundle) -> str:
    instead = f"python -m export.build --model {bundle.name.model} --precision fp32 --target {_CPU}"
    return f"on the CPU {_CPU!r} bundles run: name one of those (--target {_CPU}), or build one: {instead}"


def _is_path(source: str) -> bool:
    return source in (".", "..") or any(mark in source for mark in (os.sep, os.altsep) if mark)
