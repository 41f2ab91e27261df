"""An image of the FLUX student with random weights, in one of the ways of gpu/flux/modes.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gpu.flux.modes import Mode
from gpu.records import SkipPartError
from gpu.timing import stream

if TYPE_CHECKING:
    from torch import Tensor, nn

    from arcflow.field import MomentumField
    from gpu.flux.backbone import Backbone, BackboneSize
    from runtime.cuda.interface import Device

SHIFT = 3.2

Network = TypeVar("Network", bound="nn.Module")

Solver = Callable[["MomentumField", "Tensor", float, float], "Tensor"]
"""The state at the second level from that at the first, which is the segment's start."""


class Baseline:
    """A student, its inputs, and how it is run. model: what :meth:`evaluate` calls, its layers as the mode has them."""

    model: nn.Module

    def __init__(self, size: BackboneSize, mode: Mode, where: str, side: int, text_tokens: int) -> None:
        """where: torch's device. Raises SkipPartError where the mode needs what is not installed."""
        import torch

        from arcflow.schedule import sigmas
        from gpu.flux.attention import need_fp8
        from gpu.flux.backbone import Backbone, inputs

        if mode.attention == "fp8":
            need_fp8(where)
        self.size, self.mode, self.where = size, mode, where
        torch.manual_seed(0)
        with torch.device("meta"):
            model = Backbone(size).to(torch.bfloat16)
        backbone = randomise(model.to_empty(device=where))
        self.parameters = sum(p.numel() for p in backbone.parameters())
        self.operations = size.operations(side * side, text_tokens)
        self.given = inputs(size, side, text_tokens, where, torch.bfloat16)
        self.noise = torch.randn(1, side * side, size.in_channels, device=where)
        self.levels = [float(level) for level in sigmas(2, SHIFT)]
        self._times = [torch.tensor([level], device=where, dtype=torch.bfloat16) for level in self.levels]
        self.fp8_linears = 0
        self.advance: Solver = closed_form()
        self.model = self._network(backbone)

    def evaluate(self, x: Tensor, step: int = 0) -> MomentumField:
        """The field of evaluation ``step`` at the state ``x``."""
        import torch

        field: MomentumField = self.model(
            hidden_states=x.to(torch.bfloat16), timestep=self._times[step], **self.given, return_dict=False
        )[0]
        return field

    def generate(self) -> Tensor:
        """Two evaluations with the solver between: the latent, float32 [1, tokens, channels]."""
        x = self.noise
        for step, (a, b) in enumerate(itertools.pairwise(self.levels)):
            x = self.advance(self.evaluate(x, step), x, a, b)
        return x

    @contextmanager
    def ready(self, device: Device | None) -> Iterator[None]:
        """In the block, layers are compiled and attention is chosen as the mode says; nothing is differentiated.

        device: whose kernel is the solver and on whose stream everything runs, where the mode asks for that; None for
        the closed form in torch, on a stream of torch's own.
        """
        import torch

        from gpu.flux.attention import chosen

        if self.mode.solver == "kernel" and device is not None:
            self.advance = kernel_solver(device)
        elif self.mode.compiled:
            self.advance = closed_form(compiled=True)
        with torch.no_grad(), chosen(self.mode.attention), stream(device), compiled(self.model, self.mode):
            yield

    def _network(self, backbone: Backbone) -> nn.Module:
        import torch

        from gpu.flux.fp8 import measure_bounds, to_fp8
        from gpu.flux.fused import FusedBackbone

        if self.mode.network == "diffusers":
            return in_diffusers(backbone)
        if self.mode.network == "plain":
            return backbone
        fused = FusedBackbone(backbone).eval()
        if self.mode.fp8:
            self.model = fused
            with torch.no_grad():
                bounds = measure_bounds(fused, self.generate)
            self.fp8_linears = to_fp8(fused, bounds, self.mode.attention == "fp8")
        return fused


def closed_form(compiled: bool = False) -> Solver:
    """The training code's solver."""
    import torch

    from arcflow.field import displacement

    def advance(field: MomentumField, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return x + displacement(field, a, a, b)

    function = torch.compile(advance, dynamic=False) if compiled else advance
    levels: dict[tuple[float, Any], Tensor] = {}  # As tensors, made once: a number would be a constant, compiled anew.

    def at(level: float, x: Tensor) -> Tensor:
        return levels.setdefault((level, x.device), torch.tensor(level, device=x.device))

    return lambda field, x, a, b: function(field, x, at(a, x), at(b, x))


def kernel_solver(device: Device) -> Solver:
    """The runtime's kernel, on the device's stream."""
    import torch

    from gpu.kernels.fields import Placed, Size, put

    def advance(field: MomentumField, x: Tensor, a: float, b: float) -> Tensor:
        parts = [part.contiguous() for part in (field.means, field.logweights, field.loggammas)]
        batch, tokens, modes, channels = parts[0].shape
        size = Size(tokens, batch, modes, channels, str(parts[0].dtype).removeprefix("torch."))
        out = torch.empty_like(x)
        put(device, Placed(size, *(part.data_ptr() for part in (*parts, x, out))), (a, a, b))
        return out

    return advance


@contextmanager
def compiled(model: nn.Module, mode: Mode) -> Iterator[None]:
    """In the block the model's blocks, or all of it, are compiled."""
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    options: dict[str, Any] = {"mode": "max-autotune-no-cudagraphs"} if mode.autotune else {}
    blocks = [block for name in ("transformer_blocks", "single_transformer_blocks") for block in getattr(model, name)]
    chosen = {"whole": [model], "block": blocks, None: []}[mode.compiled]
    for module in chosen:
        module.compile(**options)
    try:
        yield
    finally:
        for module in chosen:
            module._compiled_call_impl = None


def difference(latent: Tensor, work: Path, name: str, first: bool) -> float | None:
    """Relative L2 distance to the latent that the mode ``eager`` left in ``work``; None where it left none.

    first: this is that mode. Weights, noise and prompt are the same in every mode on one kind of device.
    """
    import torch

    path = work / f"latent-{name}.pt"
    if first:
        work.mkdir(parents=True, exist_ok=True)
        torch.save(latent.cpu(), path)
    if not path.is_file():
        return None
    reference = torch.load(path, weights_only=True)
    return float((latent.cpu() - reference).norm() / reference.norm())


def randomise(model: Network) -> Network:
    """Random weights in place, of a size that keeps activations finite; norms' own weights about 1."""
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        own = "norm" in name and name.endswith("weight") and parameter.ndim == 1
        parameter.normal_(1.0 if own else 0.0, 0.02)
    return model.eval()


def in_diffusers(backbone: Backbone) -> nn.Module:
    """The same weights in diffusers' own network, where it is installed. Raises SkipPartError."""
    import torch

    lacking = [name for name in ("diffusers", "peft", "msgspec") if find_spec(name) is None]
    if lacking:
        raise SkipPartError(f"needs {', '.join(lacking)}, not installed here")
    from arcflow.students import build_student

    size = backbone.size
    config: Mapping[str, Any] = {key: value for key, value in size.__dict__.items() if key != "modes"}
    with torch.device("meta"):
        model = build_student({**config, "patch_size": 1, "guidance_embeds": True}, size.modes)
    model.load_state_dict(backbone.state_dict(), strict=True, assign=True)
    return model.eval()
