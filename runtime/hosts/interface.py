"""What a host gives to :class:`runtime.pipeline.Pipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from runtime.result import Generation, OnPreview, OnStep, Settings

if TYPE_CHECKING:
    from engines.schema import Manifest
    from runtime.request import Request
    from runtime.text import PromptTokenizer

CLOSED = "the pipeline is closed: open it again"


class Host(Protocol):
    """A loaded bundle. Safe to call from several threads."""

    @property
    def manifest(self) -> Manifest:
        """The bundle's."""

    @property
    def backend(self) -> str:
        """What runs the networks: "ONNX Runtime 1.32.0, CPUExecutionProvider"; "" where that was not said."""

    @property
    def tokenizers(self) -> Mapping[str, PromptTokenizer]:
        """By the name of the encoder."""

    def generate(
        self,
        request: Request,
        settings: Settings,
        on_step: OnStep | None = None,
        on_preview: OnPreview | None = None,
    ) -> Generation:
        """The images of a checked request. Raises BackendError."""

    def memory(self) -> Mapping[str, int]:
        """Bytes that the host knows that it holds, by kind; "weights" is one."""

    def close(self) -> None:
        """Give everything back. May be called twice."""


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of the files that hold the networks and their weights."""
    sizes = {entry.path: entry.size for entry in manifest.files}
    files = {path for spec in manifest.networks.values() for path in (spec.file, *spec.data)}
    return sum(sizes.get(path, 0) for path in files)
