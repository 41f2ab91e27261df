"""A pipeline from its folder, whole or its VAE alone, and the device that it goes to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from arcflow.errors import BackboneError
from arcflow.sources.base import AGAIN, INDEX, VAE


def open_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """The diffusers pipeline in a folder, all of its networks in ``dtype``, without bars. Raises BackboneError."""
    if not (folder / INDEX).is_file():
        raise BackboneError(f"{folder} is no diffusers pipeline: it has no {INDEX}; give --base FOLDER")
    try:
        with quiet():
            from diffusers import DiffusionPipeline

            pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BackboneError(f"cannot open {folder}: {error}; download the base again") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def open_vae(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The VAE of the pipeline in a folder, frozen, in evaluation mode. Raises BackboneError where it cannot be read."""
    from diffusers import AutoModel

    try:
        with quiet():
            vae = AutoModel.from_pretrained(str(folder / VAE), dtype=dtype, use_safetensors=True, local_files_only=True)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise BackboneError(f"cannot read the VAE of {folder}: {error}; {AGAIN}") from error
    return vae.to(device).requires_grad_(False).eval()


def choose_device(name: str | None) -> torch.device:
    """The device that ``--device`` names; None is a GPU where there is one, else the CPU.

    Raises BackboneError where this machine or this torch lacks it.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(f"--device {name} cannot be used: {error}") from error
    return device


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' bars and remarks, such as one at each prompt that is longer than CLIP's 77 tokens."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = of_diffusers, of_transformers
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()
