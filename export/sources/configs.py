"""Reading the ``config.json`` files of a pipeline folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.errors import ExportError, WeightsError

_VAE_KEYS = ("latent_channels", "out_channels", "block_out_channels", "scaling_factor")
_QWEN_VAE_KEYS = ("z_dim", "temperal_downsample", "latents_mean", "latents_std")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises WeightsError."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(f"there is no {path}; give the folder of a diffusers pipeline") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}; download or save it again") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} is not a JSON object; download or save it again")
    return data


def read_vae_config(folder: Path) -> dict[str, Any]:
    """The configuration of the AutoencoderKL in ``folder``. Raises WeightsError or ExportError."""
    return _read_with(folder / "config.json", _VAE_KEYS, "an AutoencoderKL")


def read_qwen_vae_config(folder: Path) -> dict[str, Any]:
    """The configuration of the AutoencoderKLQwenImage in ``folder``. Raises WeightsError or ExportError."""
    path = folder / "config.json"
    config = _read_with(path, _QWEN_VAE_KEYS, "Qwen-Image's VAE")
    for key in ("latents_mean", "latents_std"):
        if len(config[key]) != config["z_dim"]:
            raise ExportError(f"{path}: {key} has {len(config[key])} values, there are {config['z_dim']} channels")
    if not all(std > 0 for std in config["latents_std"]):
        raise ExportError(f"{path}: latents_std has a value that is not positive; download or save the VAE again")
    return config


def _read_with(path: Path, keys: Sequence[str], kind: str) -> dict[str, Any]:
    config = read_json(path)
    missing = [key for key in keys if key not in config]
    if missing:
        raise ExportError(f"{path} lacks {', '.join(missing)}: this is not the configuration of {kind}")
    return config
