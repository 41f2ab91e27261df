"""What a finished network stage left, and the tools that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engines.schema import ParityResult
from export.folders.keys import versions
from foundation.files import sha256_file

if TYPE_CHECKING:
    from export.assembling.inputs import Task

RECORD = "record.json"
_TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a finished network stage left: sha256 by file name, parity, nodes of the graph, and weights in FP8.

    quantised: those that are multiplied in it; stored: those that are not.
    """

    files: Mapping[str, str]
    parity: Sequence[ParityResult]
    quantised: Sequence[str]
    nodes: int
    stored: Sequence[str] = ()


@dataclass(frozen=True)
class Exported:
    """A network's finished ONNX. folder: where ``record.files`` lie, the graph first."""

    task: Task
    folder: Path
    record: Record

    @property
    def name(self) -> str:
        """The network's."""
        return self.task.name

    @property
    def onnx(self) -> Path:
        """The graph."""
        return self.folder / f"{self.name}.onnx"


def read_record(folder: Path) -> Record | None:
    """The record of a finished stage whose files are all what it says; else None."""
    try:
        record = msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
        if all(sha256_file(folder / name) == digest for name, digest in record.files.items()):
            return record
    except (OSError, msgspec.MsgspecError):
        pass  # A record that is missing or damaged means only that the stage runs again.
    return None


def tool_versions() -> dict[str, str]:
    """The versions of everything that has a say in the bytes of a bundle."""
    return versions(_TOOLS)
