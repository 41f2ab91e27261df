"""A student that computes as its FP8 bundle will, while it is trained: so it learns to make up for the rounding.

The linears that FP8 bundles quantise (``fp8_layers`` of the architecture) multiply with what E4M3 leaves of weights
and inputs. The weight is the merged one, ``W + B A`` in float32, cast to what networks compute in, with the exporter's
scale a row. An input has a scale of each image's own greatest magnitude, where a bundle has one that was measured
beforehand: so an image's result does not depend on the company that it has in a batch. Rounding has no useful
derivative; gradients pass it as if it were not there (the straight-through estimator, arXiv 1308.3432).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcflow.sources.fp8 import FP8_MAX, activation_scale, fake_quantise, fake_quantise_rows, from_codes, saturated
from arcflow.sources.stored import Fp8Linear
from arcflow.students import Student

Bounds = Mapping[str, float]
"""The greatest magnitude of a layer's inputs that is kept, by the layer's name."""

_INSIDE = (".base_layer", ".lora_")
"""Parts of names of what peft puts inside of a layer."""


class Fp8Linears:
    """The linears of a student that its FP8 bundle will quantise. They compute so in :meth:`computing` alone.

    The teacher, which shares them, never does; nor does LoRA's dropout act then, for a merged weight has none.
    """

    def __init__(self, student: Student) -> None:
        """Put a forward of our own before those of the student's linears; it changes nothing until it is asked to."""
        self._student, self._on = student, False
        self._bounds: Bounds | None = None
        self._seen: dict[str, float] | None = None
        modules = dict(student.backbone.named_modules())
        patterns = student.architecture.fp8_layers(student.backbone.config)
        self.layers = tuple(name for name, module in modules.items() if _is_quantised(name, module, patterns))
        """Names of the layers, in the backbone's order."""
        for name in self.layers:
            modules[name].forward = self._forward(name, modules[name])

    @contextmanager
    def computing(self, bounds: Bounds | None = None) -> Iterator[None]:
        """In the block the student computes in FP8. bounds: of inputs, as in a bundle; None: each image's own."""
        self._on, self._bounds = True, bounds
        try:
            yield
        finally:
            self._on, self._bounds = False, None

    @contextmanager
    def observed(self) -> Iterator[dict[str, float]]:
        """Yield the greatest magnitude of each layer's inputs so far, which grows while the student computes inside."""
        self._seen = dict.fromkeys(self.layers, 0.0)
        try:
            yield self._seen
        finally:
            self._seen = None

    def _forward(self, name: str, module: Any) -> Callable[..., Tensor]:
        own = module.forward

        def forward(x: Tensor, *rest: Any, **more: Any) -> Tensor:
            if self._student.teaching or not (self._on or self._seen is not None):
                result: Tensor = own(x, *rest, **more)
                return result
            if self._seen is not None:
                self._seen[name] = max(self._seen[name], float(x.detach().abs().amax()))
            return self._quantised(name, module, x) if self._on else own(x, *rest, **more)

        return forward

    def _quantised(self, name: str, module: Any, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            weight, x = merged(module).to(dtype), x.to(dtype)
            with torch.no_grad():
                rows = fake_quantise_rows(weight, dtype).to(dtype)
                seen = self._rounded(name, x)
            bias = getattr(module, "base_layer", module).bias
            bias = None if bias is None else bias.to(dtype)
            return functional.linear(straight_through(x, seen), straight_through(weight, rows), bias)

    def _rounded(self, name: str, x: Tensor) -> Tensor:
        return _own_bounds(x) if self._bounds is None else fake_quantise(x, activation_scale(self._bounds[name]))


def merged(module: Any) -> Tensor:
    """The weight [out, in] of a linear, float32: with LoRA ``W + scale B A``, differentiable; codes are widened."""
    base = getattr(module, "base_layer", module)
    stored: Tensor = base.weight
    weight = from_codes(stored, base.weight_scale) if isinstance(base, Fp8Linear) else stored.float()
    if base is not module:
        weight = weight + module.scaling["default"] * (
            module.lora_B["default"].weight @ module.lora_A["default"].weight
        )
    return weight


def straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """``rounded``, whose gradient goes to ``values`` of the same shape as it is."""
    result: Tensor = _StraightThrough.apply(values, rounded)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _own_bounds(x: Tensor) -> Tensor:
    """What is left of inputs [B, ...] after FP8 with a scale an image, of its own greatest magnitude."""
    amax = x.abs().flatten(1).amax(dim=1).float()
    steps = torch.where(amax > 0.0, amax / FP8_MAX, torch.ones_like(amax)).reshape(-1, *[1] * (x.ndim - 1))
    return (saturated(x.float() / steps).float() * steps).to(x.dtype)


def _is_quantised(name: str, module: nn.Module, patterns: tuple[str, ...]) -> bool:
    if any(part in name for part in _INSIDE):
        return False
    linear = isinstance(module, nn.Linear) or hasattr(module, "lora_A")
    return linear and any(fnmatchcase(f"{name}.weight", pattern) for pattern in patterns)
