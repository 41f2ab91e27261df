"""A bundle's model repository: ``NAME/config.pbtxt`` and ``NAME/1/model.py``."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.bundle import open_bundle
from engines.schema import SOURCE_TARGET
from foundation.files import atomic_directory
from runtime.errors import RequestError

if TYPE_CHECKING:
    from engines.schema import Manifest

VERSION = "1"
BUNDLE = "bundle"
"""The folder of a copied bundle beside ``model.py``."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_MODEL = '''"""What Triton's Python backend runs; it is in the package arcflow, which this Python needs."""

from integrations.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''

INPUTS = (
    ("PROMPT", "TYPE_STRING", False),
    ("SEED", "TYPE_UINT64", True),
    ("WIDTH", "TYPE_INT32", True),
    ("HEIGHT", "TYPE_INT32", True),
    ("NFE", "TYPE_INT32", True),
    ("PARTIAL_IMAGES", "TYPE_INT32", True),
)
"""Name, type, and whether it may be left out. One value an image."""

OUTPUTS = (
    ("IMAGE", "TYPE_UINT8", (-1, -1, 3)),
    ("PNG", "TYPE_STRING", (1,)),
    ("IMAGE_SEED", "TYPE_UINT64", (1,)),
    ("ROW", "TYPE_INT32", (1,)),
    ("PARTIAL_INDEX", "TYPE_INT32", (1,)),
    ("SIGMA", "TYPE_FP32", (1,)),
)
"""Name, type and dimensions after the batch's."""


@dataclass(frozen=True)
class Layout:
    """How a bundle is served; as the options of ``python -m integrations.triton``."""

    name: str | None = None
    responses: str = "decoupled"
    host: str = "auto"
    gpus: str | None = None
    instances: int = 1
    threads: int | None = None
    batch_wait: int = 2000
    queue: int = 64
    copy: bool = False


def write_repository(bundle: Path, out: Path, layout: Layout) -> Path:
    """Write the model's folder into ``out``, whole or not at all, and return it.

    The bundle is verified. Raises BundleError, RequestError (an option; the folder is there already), ArcFlowError.
    """
    opened = open_bundle(bundle)
    manifest = opened.manifest
    if manifest.target == SOURCE_TARGET:
        raise RequestError(
            f"{bundle} is for target {SOURCE_TARGET!r} (ONNX files for building plans): build plans for your GPU with "
            f"python -m export.engine {bundle} --target TARGET, and name that bundle"
        )
    name = layout.name or manifest.model
    if not _NAME.match(name):
        raise RequestError(f"--name is {name!r}; letters, digits, '.', '_' and '-' are allowed")
    folder = out / name
    if folder.exists():
        raise RequestError(f"{folder} is there already: remove it, or give the model another --name")
    text = config(manifest, layout, None if layout.copy else str(bundle.absolute()))
    with atomic_directory(folder) as unfinished:
        version = unfinished / VERSION
        version.mkdir()
        (unfinished / "config.pbtxt").write_text(text, encoding="utf-8")
        (version / "model.py").write_text(_MODEL, encoding="utf-8")
        if layout.copy:
            shutil.copytree(bundle, version / BUNDLE)
            open_bundle(version / BUNDLE)
    return folder


def config(manifest: Manifest, layout: Layout, bundle: str | None) -> str:
    """The text of ``config.pbtxt``. bundle: its folder; None where it lies beside ``model.py``. Raises RequestError."""
    _at_least("instances", layout.instances, 1)
    _at_least("batch-wait", layout.batch_wait, 0)
    _at_least("queue", layout.queue, 1)
    if layout.threads is not None:
        _at_least("threads", layout.threads, 1)
    parameters = {"host": layout.host}
    if bundle is not None:
        parameters["bundle"] = bundle
    if layout.threads is not None:
        parameters["threads"] = str(layout.threads)
    inputs = [
        f'  {{ name: "{name}" data_type: {kind} dims: [ 1 ]{" optional: true" if optional else ""} }}'
        for name, kind, optional in INPUTS
    ]
    outputs = [
        f'  {{ name: "{name}" data_type: {kind} dims: [ {", ".join(map(str, dims))} ] }}'
        for name, kind, dims in OUTPUTS
    ]
    entries = [f"parameters {{ key: {_quoted(key)} value: {{ string_value: {_quoted(value)} }} }}"
               for key, value in sorted(parameters.items())]  # fmt: skip
    return "\n".join([
        f"# {manifest.model}-{manifest.precision}-{manifest.target}, {manifest.digest}; made by integrations.triton.",
        'backend: "python"',
        f"max_batch_size: {manifest.limits.batch.max}",
        "input [", ",\n".join(inputs), "]",
        "output [", ",\n".join(outputs), "]",
        "dynamic_batching {",
        f"  max_queue_delay_microseconds: {layout.batch_wait}",
        f"  default_queue_policy {{ max_queue_size: {layout.queue} }}",
        "}",
        f"model_transaction_policy {{ decoupled: {str(layout.responses == 'decoupled').lower()} }}",
        _instances(manifest, layout),
        *entries,
        "",
    ])  # fmt: skip


def _instances(manifest: Manifest, layout: Layout) -> str:
    gpus = layout.gpus if layout.gpus is not None else None if manifest.engine is None else "0"
    if gpus is None:
        return f"instance_group [ {{ kind: KIND_CPU count: {layout.instances} }} ]"
    numbers = gpus.split(",")
    if not all(number.isascii() and number.isdigit() and len(number) <= 4 for number in numbers):
        raise RequestError(f"--gpus is {gpus!r}; numbers of GPUs are needed, as in 0,1")
    if layout.host == "native":
        raise RequestError("--host native does not choose among GPUs: leave --gpus or --host out")
    return f"instance_group [ {{ kind: KIND_GPU count: {layout.instances} gpus: [ {', '.join(numbers)} ] }} ]"


def _at_least(option: str, value: int, low: int) -> None:
    if value < low:
        raise RequestError(f"--{option} is {value}; it must be at least {low}")


def _quoted(text: str) -> str:
    """A string of protobuf's text format: JSON's escapes are among its own, and all but ASCII goes as it is."""
    return json.dumps(text, ensure_ascii=False)
