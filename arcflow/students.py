"""Students: a backbone with a momentum head and LoRA, of any architecture that has a file such as ``flux.py``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from arcflow.architectures import flux, qwen
from arcflow.architectures.dropout import RowDropout
from arcflow.architectures.head import MomentumHead
from arcflow.errors import AdapterError, BackboneError, RecipeError
from arcflow.field import Prediction
from arcflow.recipe import StudentRecipe
from arcflow.sampling import ClassifierFree, teacher_velocity

HEAD_PARTS = {
    "proj_out_means": "means",
    "proj_out_logweights": "logweights",
    "proj_out_loggamma": "loggammas",
}
"""Names of the head's linears in an adapter file, and in :class:`MomentumHead`."""

Coverage = Literal["whole", "partial"]
"""Which LoRA pairs an adapter must have: one for every linear that students carry LoRA on, or any of them."""

LAST = ("norm_out", "proj_out")
"""The backbone's last layers, which a student has of its own."""

_LISTED = 3
"""How many of a list of missing pairs a message names."""

_ARCHITECTURES: dict[str, ModuleType] = {flux.NAME: flux, qwen.NAME: qwen}


def architecture(name: str) -> ModuleType:
    """The module of an architecture ("flux", "qwen"). Raises RecipeError for an unknown one."""
    if name not in _ARCHITECTURES:
        raise RecipeError(f"unknown architecture {name!r}: choose one of {', '.join(sorted(_ARCHITECTURES))}")
    return _ARCHITECTURES[name]


def architecture_of_adapter(class_name: str) -> ModuleType:
    """The architecture whose adapters carry that ``_class_name``. Raises RecipeError for an unknown one."""
    known = {module.ADAPTER_CLASS: module for module in _ARCHITECTURES.values()}
    if class_name not in known:
        raise RecipeError(f"unknown adapter class {class_name!r}: known are {', '.join(sorted(known))}")
    return known[class_name]


def architecture_of_pipeline(class_name: str) -> ModuleType:
    """The architecture of a diffusers pipeline. Raises BackboneError for an unknown one."""
    known = {module.PIPELINE_CLASS: module for module in _ARCHITECTURES.values()}
    if class_name not in known:
        raise BackboneError(f"--base is a {class_name}; allowed are {', '.join(sorted(known))}")
    return known[class_name]


def lora_module_names(backbone: nn.Module, arch: ModuleType) -> list[str]:
    """Full names of the linears that carry LoRA, in the backbone's order.

    Those whose name ends with one of the architecture's targets, without the ones whose results go nowhere (their
    LoRA would never learn). The backbone's own last ``proj_out`` is not among them: a suffix follows a dot.
    """
    suffixes = tuple("." + target for target in arch.LORA_TARGETS)
    linears = [n for n, m in backbone.named_modules() if n.endswith(suffixes) and isinstance(m, nn.Linear)]
    unused = arch.unused_linears(backbone)
    return [n for n in linears if n not in unused]


def check_coverage(pairs: Collection[str], backbone: nn.Module, arch: ModuleType, coverage: Coverage) -> None:
    """Hold an adapter's LoRA pairs, by module, to the linears of ``backbone`` (on any device) that students train.

    Raises AdapterError, which names what is missing, unless ``coverage`` is "partial".
    """
    wanted = lora_module_names(backbone, arch)
    missing = [name for name in wanted if name not in pairs]
    if missing and coverage == "whole":
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise AdapterError(
            f"the adapter lacks the LoRA pairs of {', '.join(missing[:_LISTED])}{more} ({len(missing)} of the "
            f"{len(wanted)} layers that students of this base train): their weights would stay the teacher's; download "
            "or save the adapter again, or add --partial if they were left out on purpose"
        )


def build_student(config: Mapping[str, Any], modes: int, name: str = flux.NAME) -> nn.Module:
    """A backbone of that diffusers configuration whose ``proj_out`` is a MomentumHead (weights not set).

    Works under ``torch.device("meta")``, then without memory. Raises RecipeError, BackboneError.
    Its forward is diffusers' own and returns a MomentumField where the teacher's returns a velocity.
    """
    backbone: Any = architecture(name).build_backbone(config)
    linear = backbone.proj_out
    backbone.proj_out = MomentumHead(linear.in_features, linear.out_features, modes)
    student: nn.Module = backbone
    return student


MakeHead = Callable[[nn.Linear], nn.Module]
"""A head from the teacher's last linear: its result is a :class:`arcflow.field.Prediction`."""


def momentum_head(recipe: StudentRecipe, proj_out: nn.Linear) -> MomentumHead:
    """The momentum head that a recipe's student starts with."""
    return MomentumHead.from_teacher(proj_out, recipe.modes, recipe.head_bias_std, recipe.gamma_range, recipe.gate_span)


class Student(nn.Module):
    """A trainable student: frozen backbone, live LoRA (peft), and fully trained ``norm_out`` and momentum head.

    Its teacher is the same backbone without LoRA and with the teacher's own last layers, which stay here, frozen: one
    copy of the weights serves both (:meth:`as_teacher`). teaching: whether it is the teacher at the moment.
    """

    backbone: Any

    def __init__(
        self, teacher: nn.Module, recipe: StudentRecipe, name: str = flux.NAME, make_head: MakeHead | None = None
    ) -> None:
        """Make a student of ``teacher``, a backbone that it takes over. Random draws: the global generator's.

        make_head: makes what takes the place of the teacher's ``proj_out`` (default: the recipe's momentum head).

        All but the teacher's last layers may be on the meta device. What is trained is drawn and kept in float32 (LoRA
        on the CPU, whatever the backbone's device): of a backbone in half precision, call it under autocast.
        """
        super().__init__()
        self.recipe = recipe
        self.architecture = architecture(name)
        self.teaching = False
        backbone: Any = teacher.requires_grad_(False)
        self.teacher_layers = nn.ModuleDict({layer: getattr(backbone, layer) for layer in LAST}).eval()
        head = (make_head or partial(momentum_head, recipe))(backbone.proj_out)
        backbone.norm_out = copy.deepcopy(backbone.norm_out)
        lora = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.rank,
            lora_dropout=recipe.dropout,
            init_lora_weights=False,
            target_modules=lora_module_names(backbone, self.architecture),
        )
        self.backbone = inject_adapter_in_model(lora, backbone)
        self.backbone.proj_out = head
        self.backbone.norm_out.requires_grad_(True)
        for number, (_, layer) in enumerate(self.lora_layers()):
            _start(layer, recipe, number)
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # small steps would be lost in a half-precision teacher's dtype

    def forward(self, x: Tensor, sigma: Tensor, condition: Any) -> Prediction:
        """The field of the segment that starts at ``sigma`` [B] with tokens ``x`` [B, S, C]."""
        field: Prediction = self.architecture.evaluate(self.backbone, x, sigma, condition)
        return field

    def train(self, mode: bool = True) -> Student:
        """Training mode for what is trained: the only dropout is LoRA's."""
        super().train(mode)
        self.backbone.eval()
        self.teacher_layers.eval()
        for _, layer in self.lora_layers():
            layer.lora_dropout.train(mode)  # type: ignore[union-attr]
        return self

    def filled(self) -> None:
        """To be called once the frozen weights have their values; a student with LoRA has nothing left to do."""

    @contextmanager
    def as_teacher(self) -> Iterator[nn.Module]:
        """The backbone as the frozen teacher, which returns a velocity; a student again when the block is left.

        Graphs of the student that are alive stay whole. Not for two threads at once.
        """
        adapted = [layer for _, layer in self.lora_layers()]
        own = {layer: getattr(self.backbone, layer) for layer in LAST}
        try:
            self._switch(adapted, off=True, last=dict(self.teacher_layers.items()))
            yield self.backbone
        finally:
            self._switch(adapted, off=False, last=own)

    def teacher_velocity(
        self, x: Tensor, sigma: Tensor, condition: Any, guidance: ClassifierFree | None = None
    ) -> Tensor:
        """The frozen teacher's velocity [B, S, C]: see :func:`arcflow.sampling.teacher_velocity`. No gradient."""
        with self.as_teacher() as teacher:
            return teacher_velocity(self.architecture, teacher, x, sigma, condition, guidance)

    @property
    def packed_channels(self) -> int:
        """Channels of a packed token."""
        return int(self.teacher_layers["proj_out"].out_features)  # type: ignore[arg-type]

    def seed_dropout(self, generators: Sequence[torch.Generator]) -> None:
        """Seed LoRA's dropout of the coming forward, one draw of each row's generator: see :class:`RowDropout`."""
        rows = torch.stack([torch.randint(2**62, (), generator=generator) for generator in generators])
        for _, layer in self.lora_layers():
            dropout = layer.lora_dropout["default"]  # type: ignore[index]
            if isinstance(dropout, RowDropout):
                dropout.seed(rows)

    def blocks(self) -> list[nn.Module]:
        """The backbone's transformer blocks, before it is sharded: that renames their classes."""
        return [module for module in self.backbone.modules() if type(module).__name__ in self.backbone._repeated_blocks]

    def gamma_parameters(self) -> list[nn.Parameter]:
        """Parameters of the gamma linear, which learns at a lower rate; none of a head that has no gammas."""
        head = self.backbone.proj_out
        return list(head.loggammas.parameters()) if isinstance(head, MomentumHead) else []

    def lora_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """(module name in the backbone, peft layer) of every adapted linear."""
        return ((n, m) for n, m in self.backbone.named_modules() if hasattr(m, "lora_A"))

    def _switch(self, adapted: list[Any], off: bool, last: Mapping[str, nn.Module]) -> None:
        self.teaching = off
        for layer in adapted:
            # Not enable_adapters: it would also let go of the gradients of a graph that is alive.
            layer._disable_adapters = off
        for name, module in last.items():
            setattr(self.backbone, name, module)


def _start(layer: Any, recipe: StudentRecipe, number: int) -> None:
    """Fresh LoRA, Gaussian as peft's own, in float32 whatever the dtype of the weight that it is added to."""
    down, up = layer.lora_A["default"], layer.lora_B["default"]
    down.weight = nn.Parameter(torch.randn(down.weight.shape) / recipe.rank)
    up.weight = nn.Parameter(torch.zeros(up.weight.shape))
    if recipe.dropout > 0:
        layer.lora_dropout["default"] = RowDropout(recipe.dropout, number)
