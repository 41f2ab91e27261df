"""Which bundles a user can choose, by name, and opening one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime import Pipeline

FOLDER = "arcflow"
"""ComfyUI's name for our kind of model: ``models/arcflow``, and the key for extra_model_paths.yaml."""

AUTO = "auto"


def register_folder() -> None:
    """Make ``models/arcflow`` one of ComfyUI's model folders, after those that the user has configured."""
    import folder_paths

    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def choices() -> dict[str, Path]:
    """Bundles by the name that a user chooses, with their folders; their content is not looked at.

    Looked for in ComfyUI's model folders, then where ArcFlow looks (:func:`engines.locate.default_roots`); of equal
    names the first counts. A bundle with a style LoRA lies one folder down and is called by it too:
    "watercolour/flux-fp8-sm89".
    """
    import folder_paths

    from engines.locate import available, default_roots

    found: dict[str, Path] = {}
    for root in (*map(Path, folder_paths.get_folder_paths(FOLDER)), *default_roots()):
        try:
            inner = [folder for folder in root.iterdir() if folder.is_dir()]
        except OSError:  # As in engines.locate: a root that is missing or closed to us holds no bundle for us.
            continue
        for prefix, folder in (("", root), *((f"{folder.name}/", folder) for folder in inner)):
            for name, path in available([folder]).items():
                found.setdefault(f"{prefix}{name}", path)
    return dict(sorted(found.items(), key=lambda item: ("/" in item[0], item[0])))


def devices() -> list[str]:
    """What a bundle may run on here: "auto" (what it was built for), "cpu", and each GPU that torch sees."""
    import torch

    return [AUTO, "cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]


def folder_of(name: str) -> Path:
    """The folder of the bundle that a user chose. Raises BundleNotFoundError, which lists what there is."""
    from engines.errors import BundleNotFoundError

    found = choices()
    if name not in found:
        listing = ", ".join(found) or "none"
        raise BundleNotFoundError(
            f"there is no bundle {name!r}; available: {listing}; put bundles into ComfyUI's models/{FOLDER} or name "
            "their folder in $ARCFLOW_ENGINES"
        )
    return found[name]


def fingerprint(name: str) -> str:
    """Another value once the bundle has been built again. Raises BundleNotFoundError, OSError."""
    return hashlib.sha256((folder_of(name) / "manifest.json").read_bytes()).hexdigest()


def open_bundle(name: str, device: str, low_vram: bool) -> Pipeline:
    """The loaded bundle. Raises what :meth:`runtime.Pipeline.open` raises, and BundleNotFoundError."""
    from engines.locate import parse_name
    from runtime import Pipeline

    folder = folder_of(name)
    called = parse_name(folder.name)
    if called is not None and (device.startswith("cuda") or (device == AUTO and called.target != "cpu")):
        # Plans take their memory from the GPU themselves: what ComfyUI holds of other models makes room first.
        import comfy.model_management

        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
    return Pipeline.open(
        folder,
        precision=called.precision if called else None,
        target=called.target if called else None,
        device=None if device == AUTO else device,
        low_vram=low_vram,
    )
