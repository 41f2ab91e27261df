"""A whole pipeline from its folder, and the device that it goes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from arcflow.errors import BackboneError
from arcflow.sources.base import INDEX


def open_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """The diffusers pipeline in a folder, all of its networks in ``dtype``, without bars. Raises BackboneError."""
    from diffusers import DiffusionPipeline

    if not (folder / INDEX).is_file():
        raise BackboneError(f"{folder} is no diffusers pipeline: it has no {INDEX}; give --base FOLDER")
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BackboneError(f"cannot open {folder}: {error}; download the base again") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def choose_device(name: str) -> torch.device:
    """The device that ``--device`` names. Raises BackboneError where this machine or this torch lacks it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(f"--device {name} cannot be used: {error}") from error
    return device
