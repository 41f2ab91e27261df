"""The nodes, in ComfyUI's V1 contract: classes with INPUT_TYPES, RETURN_TYPES and FUNCTION.

Everything is imported when a node runs: ComfyUI's start does not wait for it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from . import bundles
from .progress import Progress

if TYPE_CHECKING:
    import torch

    from runtime import Pipeline

CATEGORY = "ArcFlow"
BUNDLE = "ARCFLOW_BUNDLE"
"""The type of the wire between the two nodes: a :class:`runtime.Pipeline`."""

USUAL = "0: the bundle's usual"


class LoadBundle:
    """From a bundle's name to a loaded bundle."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Verifies and loads an ArcFlow bundle. Bundles with a style LoRA are in the same list, as STYLE/NAME."
    RETURN_TYPES = (BUNDLE,)
    RETURN_NAMES = ("bundle",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The widgets; ComfyUI asks anew when the page is loaded or refreshed (R)."""
        return {
            "required": {
                "bundle": (list(bundles.choices()), {"tooltip": "Model, precision and target; press R after a build"}),
                "device": (bundles.devices(), {"tooltip": "auto: what the bundle was built for"}),
                "low_vram": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Networks take turns on the GPU; for TensorRT plans only"},
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, bundle: str, device: str, low_vram: bool) -> str:
        """A bundle that was built again under its name is loaded again."""
        return bundles.fingerprint(bundle)

    def load(self, bundle: str, device: str, low_vram: bool) -> tuple[Pipeline]:
        """Raises ArcFlowError; ComfyUI shows its message beside the node."""
        return (bundles.open_bundle(bundle, device, low_vram),)


class Generate:
    """From a prompt to images, with previews while they are made."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Generates images. The same seed gives the pixels that ArcFlow gives in Python, C++ and over HTTP."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "generate"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The widgets. What the bundle does not take is told when it runs."""
        return {
            "required": {
                "bundle": (BUNDLE,),
                "prompt": ("STRING", {"multiline": True, "dynamicPrompts": True, "default": ""}),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": (1 << 64) - 1,
                        "control_after_generate": True,
                        "tooltip": "Image j of the batch has the seed seed + j",
                    },
                ),
                "width": _whole(0, 16384, 0, f"Pixels. {USUAL}", step=16),
                "height": _whole(0, 16384, 0, f"Pixels. {USUAL}", step=16),
                "nfe": _whole(0, 1024, 0, f"Network evaluations; students are trained for two. {USUAL}"),
                "batch": _whole(1, 1024, 1, "Images; more than the bundle takes at a time are made one after another"),
                "previews": _whole(
                    0, 64, 4, "Frames from noise to image, by the closed form; each costs a run of the VAE"
                ),
            }
        }

    def generate(
        self, bundle: Pipeline, prompt: str, seed: int, width: int, height: int, nfe: int, batch: int, previews: int
    ) -> tuple[torch.Tensor]:
        """The images as ComfyUI's IMAGE: float32 [batch, height, width, 3] from 0 to 1, on the CPU.

        Raises RequestError, BackendError, and InterruptProcessingException once the user has asked for it.
        """
        import numpy as np
        import torch

        manifest = bundle.manifest
        most = manifest.limits.batch.max
        progress = Progress(-(-batch // most) * ((nfe or manifest.schedule.nfe) + previews), most)
        result = bundle.generate(
            prompt,
            seed=seed,
            nfe=nfe or None,
            num_images=batch,
            width=width or None,
            height=height or None,
            previews=previews,
            on_step=progress.step,
            on_preview=progress.frame,
        )
        for warning in result.warnings:
            logging.getLogger(__name__).warning("ArcFlow: %s", warning)
        return (torch.from_numpy(np.stack(result.images).astype(np.float32) / 255),)


def _whole(low: int, high: int, default: int, tooltip: str, step: int = 1) -> tuple[str, dict[str, Any]]:
    return "INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip}


NODE_CLASS_MAPPINGS = {"ArcFlowLoadBundle": LoadBundle, "ArcFlowGenerate": Generate}
NODE_DISPLAY_NAME_MAPPINGS = {"ArcFlowLoadBundle": "ArcFlow: load bundle", "ArcFlowGenerate": "ArcFlow: generate"}
