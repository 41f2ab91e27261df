"""The nearest rank, at its ends."""

from __future__ import annotations

import pytest

from foundation.quantiles import percentile


@pytest.mark.parametrize(("share", "expected"), [(0.99, 99.0), (1.0, 100.0), (0.5, 50.0), (0.001, 1.0), (0.501, 51.0)])
def test_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_one_value_is_every_percentile() -> None:
    assert percentile([3.0], 0.99) == percentile([3.0], 0.01) == 3.0
