"""The figure that a service is held to: not the average, the slow end."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The value at or below which that share (0 < share <= 1) of ``values`` lies: the nearest rank, never in between.

    ``values``: one or more, in any order.
    """
    ordered = sorted(values)
    rank = -int(-share * len(ordered) // 1)  # Rounded up.
    return ordered[max(rank, 1) - 1]
