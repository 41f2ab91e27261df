"""What the exporter must know of a network, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from export.weights.files import Weights

Dims = tuple[int | str, ...]
"""A shape; a string is a symbolic dimension, or a product such as ``4*rows``."""

Sizes = Mapping[str, int]
"""A value for every symbolic dimension (and what else ``Network.inputs`` asks for)."""

BACKBONE = "backbone"
"""The network that an adapter is merged into, and that FP8 quantises."""

INNER = "network"
"""Attribute of a traced wrapper that holds the original module: what is under it keeps its state-dict names."""


TEXT_SIZES: Sequence[Sizes] = (
    {"batch": 1, "text_tokens": 12},
    {"batch": 2, "text_tokens": 7},
    {"batch": 3, "text_tokens": 40},
)
"""Where the parity of a text encoder of any length is measured."""


@dataclass(frozen=True)
class Network:
    """One network of a bundle.

    ports_in, ports_out: (dtype, dims) by name, in order; bounds: least and greatest value of each symbolic dimension;
    build: the traced module (made under ``torch.device("meta")``) that computes in the given floating dtype; its
    forward takes the inputs by name and its attribute ``network`` is the original. Floating ports are float32
    whatever the module computes in. weights: the tensors; aliases: for a state-dict name, the names that the
    weights file may give it; reference: the original in torch with its weights, called like the traced module;
    examples: random inputs at given sizes from a generator; parity_sizes: the shapes parity is measured at;
    fp8_layers: patterns (fnmatch) of the weights, by state-dict name, that fp8 quantises unless told otherwise;
    fp8_weights: likewise of those that fp8 only stores so, and multiplies in the compute type;
    levels: the only noise levels that it can be asked for, where it looks up what depends on them.
    """

    name: str
    ports_in: Mapping[str, tuple[str, Dims]]
    ports_out: Mapping[str, tuple[str, Dims]]
    bounds: Mapping[str, tuple[int, int]]
    build: Callable[[torch.dtype], nn.Module]
    weights: Weights
    reference: Callable[[], Callable[..., Sequence[torch.Tensor]]]
    examples: Callable[[Sizes, torch.Generator], dict[str, torch.Tensor]]
    parity_sizes: Sequence[Sizes]
    aliases: Callable[[str], Sequence[str]] = field(default=lambda name: (name,))
    fp8_layers: Sequence[str] = ()
    fp8_weights: Sequence[str] = ()
    levels: Sequence[float] = ()

    def weight_key(self, name: str) -> str | None:
        """The key of a state-dict name in the weights, or None where they lack it."""
        return next((alias for alias in self.aliases(name) if alias in self.weights), None)


def as_computed(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A float32 port in the type that the network computes in; no operation where they are one."""
    return value if value.dtype == dtype else value.to(dtype)


def as_port(value: torch.Tensor) -> torch.Tensor:
    """What the network computed, as a port carries it (float32); no operation where it is float32 already."""
    import torch

    return as_computed(value, torch.float32)


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """A diffusers configuration without its private keys."""
    return {key: value for key, value in config.items() if not key.startswith("_")}
