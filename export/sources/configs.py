"""Reading the ``config.json`` files of a pipeline folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.errors import ExportError, WeightsError

_VAE_KEYS = ("latent_channels", "out_channels", "block_out_channels", "scaling_factor")


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
    path = folder / "config.json"
    config = read_json(path)
    missing = [key for key in _VAE_KEYS if key not in config]
    if missing:
        raise ExportError(f"{path} lacks {', '.join(missing)}: this is not the configuration of an AutoencoderKL")
    return config


def vae_factor(config: Mapping[str, Any]) -> int:
    """Pixels a latent cell, of an AutoencoderKL configuration."""
    return int(2 ** (len(config["block_out_channels"]) - 1))
