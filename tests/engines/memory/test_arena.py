"""The arena: nothing that is needed at once overlaps, what is not shares its place, and the peak is as stated."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import ManifestError
from engines.memory.arena import ALIGNMENT, Need, plan_arena

SPANS = st.tuples(st.integers(0, 5000), st.integers(0, 6), st.integers(0, 6))


def _needs(spans: list[tuple[int, int, int]]) -> list[Need]:
    return [Need(f"b{i}", size, min(a, b), max(a, b)) for i, (size, a, b) in enumerate(spans)]


@given(st.lists(SPANS, max_size=12))
def test_what_is_needed_at_once_does_not_overlap(spans: list[tuple[int, int, int]]) -> None:
    needs = _needs(spans)
    plan = plan_arena(needs)
    for one, two in itertools.combinations(needs, 2):
        a, b = plan.offsets[one.name], plan.offsets[two.name]
        apart = a + plan.sizes[one.name] <= b or b + plan.sizes[two.name] <= a
        assert apart or not one.meets(two)
    for need in needs:
        assert plan.offsets[need.name] % ALIGNMENT == 0
        assert need.size <= plan.sizes[need.name] < need.size + ALIGNMENT
        assert plan.offsets[need.name] + plan.sizes[need.name] <= plan.size
    fullest = max((sum(plan.sizes[n.name] for n in needs if n.first <= step <= n.last) for step in range(7)), default=0)
    assert fullest <= plan.size <= plan.apart


def test_steps_after_each_other_share_everything() -> None:
    plan = plan_arena([Need("a", 1000, 0, 0), Need("b", 3000, 1, 1), Need("c", 2000, 2, 2)])
    assert plan.offsets == {"a": 0, "b": 0, "c": 0}
    assert (plan.size, plan.apart) == (3072, 1024 + 3072 + 2048)


def test_what_lives_through_all_steps_stays_out_of_the_way() -> None:
    plan = plan_arena([Need("always", 256, 0, 2), Need("early", 512, 0, 0), Need("late", 768, 2, 2)])
    assert plan.size == 1024
    assert plan.offsets["early"] == plan.offsets["late"] == 0


def test_a_gap_is_used() -> None:
    needs = [Need("big", 4096, 0, 0), Need("left", 1024, 1, 2), Need("mid", 512, 1, 1), Need("in", 512, 2, 2)]
    plan = plan_arena(needs)
    assert plan.offsets["in"] == plan.offsets["mid"] == 1024
    assert plan.size == 4096


def test_the_order_of_the_needs_does_not_matter() -> None:
    needs = _needs([(100, 0, 3), (5000, 1, 2), (700, 2, 5), (700, 0, 1), (300, 4, 6)])
    assert {tuple(sorted(plan_arena(p).offsets.items())) for p in itertools.permutations(needs)} == {
        tuple(sorted(plan_arena(needs).offsets.items()))
    }


def test_nothing_takes_nothing() -> None:
    plan = plan_arena([])
    assert (plan.size, plan.apart) == (0, 0)


@pytest.mark.parametrize(
    "needs", [[Need("a", 1, 0, 0), Need("a", 2, 1, 1)], [Need("a", -1, 0, 0)], [Need("a", 1, 2, 1)]]
)
def test_what_cannot_be(needs: list[Need]) -> None:
    with pytest.raises(ManifestError):
        plan_arena(needs)
