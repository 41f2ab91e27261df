"""A loaded bundle, as a program uses it: open, generate, close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from runtime.architectures import architecture_of
from runtime.hosts.interface import Host
from runtime.request import check_request
from runtime.result import Generation, OnPreview, OnStep, settings_of

if TYPE_CHECKING:
    from engines.schema import Manifest

DEFAULT_MODEL = "tiny"


class Pipeline:
    """A loaded bundle, ready to generate. Open one with :meth:`open`. Safe to call from several threads.

    A context manager: it is closed at the end of its block.
    """

    def __init__(self, host: Host) -> None:
        """A pipeline over a host that is already loaded; most callers want :meth:`open`."""
        self.host = host

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
        allow_links: bool = False,
    ) -> Pipeline:
        """Verify and load a bundle.

        source: a model's name ("tiny"), looked up by :func:`engines.locate.locate`; or a bundle's folder: a Path, or
        a string with a path separator in it. precision, target: which of the model's bundles ("fp16", "cpu").
        threads: compute threads a network (default: the cores, at most 8).
        host: what runs it: this package, or the C++ core (the extra `native`), with the same results.
        backend: what runs the networks: "tensorrt" (plans, on a GPU) or "onnxruntime" (ONNX files); default: what the
        bundle is made of. device: "cpu", "cuda" or "cuda:N"; default: what the bundle is for. low_vram: text encoders
        and the other networks take turns on the GPU (plans only). allow_links: the bundle's files may be links, as in
        the caches of Hugging Face's hub, Nix or Bazel; what they lead to is held to the manifest's digests.
        Raises BundleError (missing, altered, of another kind or machine), BackendError (cannot be loaded; no such GPU),
        FlavourError (TensorRT is not installed), RequestError.
        """
        from runtime.opening import open_host

        return cls(open_host(source, precision, target, threads, host, backend, device, low_vram, allow_links))

    @property
    def manifest(self) -> Manifest:
        """What the bundle is and takes."""
        return self.host.manifest

    @property
    def backend(self) -> str:
        """What runs the networks: "ONNX Runtime 1.32.0, CPUExecutionProvider"; "" where that was not said."""
        return self.host.backend

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        nfe: int | None = None,
        num_images: int = 1,
        width: int | None = None,
        height: int | None = None,
        previews: int = 0,
        on_step: OnStep | None = None,
        on_preview: OnPreview | None = None,
    ) -> Generation:
        """Generate images.

        prompt: one prompt or several. seed: 0 .. 2^64 - 1; image j of the request starts from the noise of
        seed + j; or a list of one seed an image. nfe: network evaluations (default: the bundle's). num_images: images
        a prompt; more than the bundle's batch are made in several batches. width, height: pixels. previews: frames at
        that many noise levels between noise and image, by the closed form (no further evaluation of the backbone).
        on_step: called after each evaluation, on_preview with each frame when it is made; what they raise ends the
        generation. They must not call the pipeline.
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
        return self.host.generate(request, settings_of(self.manifest, request), on_step, on_preview)

    def sizes(
        self,
        prompt: str | Sequence[str],
        *,
        nfe: int | None = None,
        num_images: int = 1,
        width: int | None = None,
        height: int | None = None,
    ) -> dict[str, dict[str, int]]:
        """For each network the symbolic dimensions of its inputs in such a request: what its cost depends on.

        Nothing runs. Raises RequestError.
        """
        request = check_request(self.manifest, prompt, nfe=nfe, num_images=num_images, width=width, height=height)
        architecture = architecture_of(self.manifest)
        ids = {name: tokenizer(request.prompts) for name, tokenizer in self.host.tokenizers.items()}
        batch = min(request.total, self.manifest.limits.batch.max)
        return architecture.sizes(ids, architecture.grid(request.width, request.height), batch, request.nfe)

    def memory(self) -> Mapping[str, int]:
        """Bytes that the pipeline knows that it holds, by kind: "weights", and on a GPU "buffers", "peak", ..."""
        return self.host.memory()

    def close(self) -> None:
        """Give everything back; generating then raises BackendError. May be called twice."""
        self.host.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
