"""How the networks of each architecture are fed: one file an architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.manifest import Manifest
    from runtime.architectures.base import Architecture


def architecture_of(manifest: Manifest) -> Architecture[Any]:
    """The architecture of a bundle."""
    match manifest.architecture:
        case "flux":
            from runtime.architectures.flux import Flux

            return Flux(manifest)
        case "qwen":
            from runtime.architectures.qwen import Qwen

            return Qwen(manifest)
