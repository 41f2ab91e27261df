"""What the backbones of all architectures share: the field that they put out, and the student anew for parity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from export.networks.base import BACKBONE, Dims, Network, as_port, describe
from export.weights.lora import StyleLora
from export.weights.merge import MergedStudent

_VELOCITY_HEAD = "proj_out"
"""The teacher's last linear; the means of every mode of the momentum head stand in for it."""


def as_ports(field: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Means, logweights and loggammas of a momentum field, as ports carry them."""
    return as_port(field.means), as_port(field.logweights), as_port(field.loggammas)


class Given(nn.Module):
    """In place of an embedding whose result was computed elsewhere, and comes as its argument ``place``."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def forward(self, *arguments: Tensor) -> Tensor:
        """That argument, as it is."""
        return arguments[self.place]


class Columns(nn.Module):
    """In place of a linear whose results were computed elsewhere: its columns of all that was."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, results: Tensor) -> Tensor:
        """[batch, M] -> [batch, stop - start]."""
        return results[:, self.start : self.stop]


def student_network(student: MergedStudent, inputs: Mapping[str, tuple[str, Dims]], **parts: Any) -> Network:
    """The backbone of a merged student. parts: what else a Network has.

    Beside its inputs it has the outputs means [batch, image_tokens, K, C], logweights [batch, image_tokens, K, 4]
    (log-softmax over K) and loggammas [batch, image_tokens, K-1, 4], float32.
    """
    from arcflow.architectures.head import PATCH_POSITIONS

    lasts = {
        "means": (student.modes, int(student.config["in_channels"])),
        "logweights": (student.modes, PATCH_POSITIONS),
        "loggammas": (student.modes - 1, PATCH_POSITIONS),
    }
    return Network(
        name=BACKBONE,
        ports_in=inputs,
        ports_out={name: ("float32", ("batch", "image_tokens", *last)) for name, last in lasts.items()},
        bounds={"batch": (1, 1024), "image_tokens": (1, 1 << 16), "text_tokens": (1, 4096)},
        **{"weights": student.weights, **parts},
    )


def merged_anew(student: MergedStudent, teacher: Any) -> nn.Module:
    """The student in torch, merged by arcflow and not by the code that parity checks, style LoRAs included.

    teacher: the diffusers class of its base.
    """
    from arcflow.adapter import merge_into, read_adapter
    from arcflow.students import build_student

    base = teacher.from_pretrained(student.transformer, local_files_only=True, torch_dtype=torch.float32)
    empty = build_student(describe(student.config), student.modes, student.architecture)
    # Whether layers may lack their pair was decided when the student was opened.
    merged = merge_into(empty, base.state_dict(), read_adapter(student.adapter), "partial")
    for lora in student.loras:
        _add(merged, lora)
    return merged.eval()


@torch.no_grad()
def _add(student: Any, lora: StyleLora) -> None:
    """Add ``scale * B @ A`` in float32."""
    for module, (a, b) in lora.modules.items():
        delta = lora.scale * (lora.tensors.read(b).float() @ lora.tensors.read(a).float())
        if module == _VELOCITY_HEAD:
            head = student.proj_out
            head.means.weight.unflatten(0, (head.modes, -1)).add_(delta)
        else:
            student.get_submodule(module).weight.add_(delta)
