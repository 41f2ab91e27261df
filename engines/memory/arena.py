"""One piece of device memory for buffers that are not all needed at once: who lies where, and how much that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engines.errors import ManifestError

ALIGNMENT = 256
"""Bytes: what TensorRT asks of addresses."""


@dataclass(frozen=True)
class Need:
    """A buffer: its bytes, and the first and last step of the work in which it holds something."""

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Need) -> bool:
        """Whether both hold something in the same step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class ArenaPlan:
    """Where each buffer lies. size: bytes of the arena, its peak. apart: bytes that the buffers would take unshared.

    offsets: in bytes, multiples of 256. sizes: of each buffer, rounded up to that.
    """

    offsets: Mapping[str, int]
    sizes: Mapping[str, int]
    size: int
    apart: int


def plan_arena(needs: Sequence[Need]) -> ArenaPlan:
    """Offsets such that buffers which are needed in the same step do not overlap.

    The largest buffer is placed first, each at the lowest offset that is free in all of its steps; the same needs give
    the same plan. Raises ManifestError for two of one name, a size below 0 or a last step before the first.
    """
    if len({need.name for need in needs}) < len(needs):
        raise ManifestError(f"two buffers of one name among {', '.join(need.name for need in needs)}")
    for need in needs:
        if need.size < 0 or need.last < need.first:
            raise ManifestError(f"a buffer cannot be like this: {need}")
    sizes = {need.name: aligned(need.size) for need in needs}
    placed: list[Need] = []
    offsets: dict[str, int] = {}
    for need in sorted(needs, key=lambda need: (-need.size, need.first, need.name)):
        offsets[need.name] = _lowest(need, placed, offsets, sizes)
        placed.append(need)
    return ArenaPlan(
        offsets={need.name: offsets[need.name] for need in needs},
        sizes=sizes,
        size=max((offsets[name] + size for name, size in sizes.items()), default=0),
        apart=sum(sizes.values()),
    )


def _lowest(need: Need, placed: Sequence[Need], offsets: Mapping[str, int], sizes: Mapping[str, int]) -> int:
    """The lowest offset at which ``need`` fits between those of ``placed`` that it meets."""
    taken = sorted((offsets[other.name], sizes[other.name]) for other in placed if other.meets(need))
    offset = 0
    for start, size in taken:
        if start - offset >= sizes[need.name]:
            break
        offset = max(offset, start + size)
    return offset


def aligned(size: int) -> int:
    """``size`` up to a multiple of 256."""
    return -(-size // ALIGNMENT) * ALIGNMENT
