"""Reading the configuration of Qwen-Image's VAE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.sources.configs import read_json

_KEYS = ("z_dim", "temperal_downsample", "latents_mean", "latents_std")


def read_qwen_vae_config(folder: Path) -> dict[str, Any]:
    """The configuration of the AutoencoderKLQwenImage in ``folder``. Raises WeightsError or ExportError."""
    path = folder / "config.json"
    config = read_json(path)
    missing = [key for key in _KEYS if key not in config]
    if missing:
        raise ExportError(f"{path} lacks {', '.join(missing)}: this is not the configuration of Qwen-Image's VAE")
    for key in ("latents_mean", "latents_std"):
        if len(config[key]) != config["z_dim"]:
            raise ExportError(f"{path}: {key} has {len(config[key])} values, there are {config['z_dim']} channels")
    if not all(std > 0 for std in config["latents_std"]):
        raise ExportError(f"{path}: latents_std has a value that is not positive; download or save the VAE again")
    return config


def qwen_vae_factor(config: Mapping[str, Any]) -> int:
    """Pixels a latent cell, of an AutoencoderKLQwenImage configuration."""
    return int(2 ** len(config["temperal_downsample"]))
