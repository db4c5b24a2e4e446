"""Cuts of a pipeline: optimal, contiguous, and never an empty stage."""

from __future__ import annotations

from itertools import accumulate, combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from roots.config.partition import cut_blocks, nearest_for_pair, pair_boundaries, stage_boundaries


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


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.data())
def test_no_partition_of_one_stack_a_stage_is_nearer(
    blocks: list[int], data: st.DataObject
) -> None:
    layers = sum(blocks)
    num_source = data.draw(st.integers(1, layers - 1))
    found = nearest_for_pair(blocks, num_source)
    cuts, wish = list(accumulate(found))[:-1], list(accumulate(blocks))[:-1]
    assert (len(found), sum(found), min(found) > 0) == (len(blocks), layers, True)
    assert num_source in cuts
    every = [each for each in combinations(range(1, layers), len(blocks) - 1) if num_source in each]
    moves = [sum(abs(a - b) for a, b in zip(each, wish, strict=True)) for each in every]
    assert sum(abs(a - b) for a, b in zip(cuts, wish, strict=True)) == min(moves)


def test_a_partition_is_read_as_blocks_or_made_even_in_blocks_or_weights() -> None:
    weights = [9, 1, 1, 1]
    assert cut_blocks([3, 1], weights, 0, 2) == [0, 3, 4]
    assert cut_blocks("uniform", weights, 0, 2) == [0, 2, 4]
    assert cut_blocks("parameters", weights, 0, 2) == [0, 1, 4]
    assert cut_blocks("uniform", weights, 3, 2) == [0, 3, 4]
    assert cut_blocks("uniform", weights, 3, 1) == [0, 4]
