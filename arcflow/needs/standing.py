"""A deep network counted by a few of its blocks: one in the middle of each kind stands for all that are like it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arcflow.needs.counting import Counting

_KEPT = 5
"""Blocks of a kind that run: two, one for all of the middle, and two.

The first and the last may differ from the others (what comes in needs no gradient; a branch goes nowhere). What a block
leaves that lasts is known when the one after it has run.
"""


@dataclass(frozen=True)
class StandIn:
    """A block that counts as ``times`` of its kind; the one before it and the one after the next, of that kind too."""

    before: nn.Module
    block: nn.Module
    later: nn.Module
    times: int


def shorten(backbone: nn.Module) -> list[StandIn]:
    """Take all blocks out of a backbone but a few of each kind, and tell which of these stand for those taken out."""
    found = []
    for name, blocks in list(backbone.named_children()):
        if isinstance(blocks, nn.ModuleList) and len(blocks) > _KEPT:
            _, before, block, _, last = kept = [*blocks[: _KEPT - 1], blocks[-1]]
            setattr(backbone, name, nn.ModuleList(kept))
            found.append(StandIn(before, block, last, len(blocks) - _KEPT + 1))
    return found


@contextmanager
def standing(counted: Counting, stand_ins: list[StandIn]) -> Iterator[None]:
    """Count what runs of the stand-ins as often as they stand for: forwards while this is open, their backwards too.

    Results that are kept for the backward count so often until they are let go.
    """
    with ExitStack() as hooks:
        for each in stand_ins:
            _stand(counted, each, hooks)
        yield


def _stand(counted: Counting, one: StandIn, hooks: ExitStack) -> None:
    def begin(*_: Any) -> None:
        counted.begin(one.times)

    def end(_: nn.Module, __: Any, results: Any) -> None:
        counted.end()
        _when_reached(results, one.times)

    def pass_on(_: nn.Module, __: Any, results: Any) -> None:
        _when_reached(results, 1)

    def keep(*_: Any) -> None:
        counted.keep(one.times if torch.is_grad_enabled() else 1)

    def _when_reached(results: Any, times: int) -> None:
        """When the backward reaches a block's results, it is at that block: torch goes from the latest to the first."""

        def reached(_: Tensor) -> None:
            counted.times = times

        for result in results:
            if result.requires_grad:
                result.register_hook(reached)

    for handle in (
        one.block.register_forward_pre_hook(begin),
        one.block.register_forward_hook(end),
        one.before.register_forward_hook(pass_on),
        one.later.register_forward_pre_hook(keep),
    ):
        hooks.callback(handle.remove)
