"""ArcFlow's nodes for ComfyUI. ComfyUI imports this folder from ``custom_nodes``; see README.md beside it."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from .bundles import register_folder
from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]


def _find_packages(tree: Path) -> None:
    """Let ``runtime`` and ``engines`` be imported: as installed, or from the clone that this folder is linked from."""
    if find_spec("engines") is not None:
        return
    if not (tree / "engines" / "locate.py").is_file():
        raise ImportError(
            f"ArcFlow is not installed for ComfyUI's Python ({sys.executable}): run there 'pip install -e FOLDER' with "
            "the folder of ArcFlow's clone, or link integrations/comfyui of that clone into custom_nodes"
        )
    sys.path.append(str(tree))  # At the end: nothing of ComfyUI's is hidden.


_find_packages(Path(__file__).resolve().parents[2])
register_folder()
