"""Cuts of a pipeline: optimal, contiguous, and never an empty stage."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from roots.parallel.partition import pair_boundaries, stage_boundaries


def heaviest(weights: list[int], boundaries: list[int]) -> int:
    return max(sum(weights[start:stop]) for start, stop in pairwise(boundaries))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.data())
def test_no_cut_into_filled_stages_is_better(weights: list[int], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(weights)))
    found = stage_boundaries(weights, stages)
    assert len(found) == stages + 1
    assert all(start < stop for start, stop in pairwise(found))
    assert (found[0], found[-1]) == (0, len(weights))
    every = combinations(range(1, len(weights)), stages - 1)
    best = min(heaviest(weights, [0, *cuts, len(weights)]) for cuts in every)
    assert heaviest(weights, found) == best


def test_equal_layers_are_shared_evenly() -> None:
    assert stage_boundaries([1] * 8, 4) == [0, 2, 4, 6, 8]


def test_a_heavy_embedding_leaves_no_stage_without_a_block() -> None:
    assert stage_boundaries([100, 1, 100], 3) == [0, 1, 2, 3]


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=5),
    st.lists(st.integers(0, 50), min_size=1, max_size=5),
    st.data(),
)
def test_no_stage_has_blocks_of_two_stacks(
    source: list[int], target: list[int], data: st.DataObject
) -> None:
    """And of all such cuts the lightest heaviest stage is found."""
    weights, border = source + target, len(source)
    stages = data.draw(st.integers(2, len(weights)))
    found = pair_boundaries(source, target, stages)
    assert len(found) == stages + 1
    assert border in found
    assert all(start < stop for start, stop in pairwise(found))
    assert (found[0], found[-1]) == (0, len(weights))
    every = [cuts for cuts in combinations(range(1, len(weights)), stages - 1) if border in cuts]
    best = min(heaviest(weights, [0, *cuts, len(weights)]) for cuts in every)
    assert heaviest(weights, found) == best
