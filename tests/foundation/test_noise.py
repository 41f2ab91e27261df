"""The noise: Philox against its authors' vectors, golden values, and what a normal distribution must look like."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.noise import image_seeds, normal, philox4x32

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "noise.json").read_text(encoding="utf-8"))
seeds = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    """Random123's kat_vectors for philox4x32, 10 rounds."""
    assert philox4x32(np.array(counter, dtype=np.uint64), key).tolist() == list(words)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"seed {case['seed']}")
def test_golden_values_are_equal_bit_for_bit(case: dict[str, object]) -> None:
    from foundation import noise

    indices = np.array([int(index) for index in GOLDEN["indices"]], dtype=np.uint64)
    values = noise.normal_at(int(str(case["seed"])), indices)
    np.testing.assert_array_equal(values, np.array(case["values"], dtype=np.float32))


@given(seed=seeds, tokens=st.integers(1, 40), more=st.integers(1, 40), channels=st.sampled_from([1, 4, 16, 64]))
def test_an_element_does_not_depend_on_how_many_there_are(seed: int, tokens: int, more: int, channels: int) -> None:
    few = normal(seed, tokens, channels)
    many = normal(seed, tokens + more, channels)
    assert few.dtype == np.float32
    assert few.shape == (tokens, channels)
    np.testing.assert_array_equal(few, many[:tokens])
    np.testing.assert_array_equal(few.ravel(), normal(seed, tokens * channels, 1).ravel())


@settings(max_examples=20)
@given(seed=seeds)
def test_mean_variance_and_tails(seed: int) -> None:
    count = 20_000
    z = normal(seed, count, 1).astype(np.float64)
    assert np.isfinite(z).all()
    # five standard errors of each moment of a normal sample
    assert abs(z.mean()) < 5 / count**0.5
    assert abs(z.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((z**3).mean()) < 5 * (15 / count) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / count) ** 0.5
    assert abs(z).max() < 8.6  # sqrt(-2 ln 2^-54), the most there can be


@given(seed=seeds)
def test_neighbouring_seeds_are_unrelated(seed: int) -> None:
    one, two = (normal(s, 2_000, 1).ravel().astype(np.float64) for s in image_seeds(seed, 2))
    assert abs(np.corrcoef(one, two)[0, 1]) < 6 / 2_000**0.5


def test_image_seeds_wrap_around() -> None:
    assert image_seeds(2**64 - 2, 4) == (2**64 - 2, 2**64 - 1, 0, 1)
