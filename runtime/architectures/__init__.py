"""How the networks of each architecture are fed: one file an architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.schema import Manifest
    from runtime.architectures.base import Architecture


def architecture_of(manifest: Manifest) -> Architecture:
    """The architecture of a bundle."""
    match manifest.architecture:
        case "flux":
            from runtime.architectures.flux import Flux

            return Flux(manifest)
        case "qwen":
            from runtime.architectures.qwen import Qwen

            return Qwen(manifest)
