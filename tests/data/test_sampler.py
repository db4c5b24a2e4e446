"""Who reads what in a step."""

from __future__ import annotations

import pytest

from roots.config.batch import BatchPlan
from roots.data.sampler import DataState, dropout_keys, places_in_step


def plan_of(data_parallel, micro, total):
    return BatchPlan(data_parallel, micro, total // (micro * data_parallel), total)


@pytest.mark.parametrize("data_parallel", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("micro", [1, 2])
def test_ranks_share_all_places_of_a_step_between_them(data_parallel, micro):
    plan = plan_of(data_parallel, micro, 24)
    ranks = [places_in_step(plan, rank) for rank in range(data_parallel)]
    assert all(len(places) == plan.accumulation for places in ranks)
    assert all(len(places) == micro for rank in ranks for places in rank)
    assert sorted(place for rank in ranks for places in rank for place in places) == list(range(24))


def test_micro_batches_are_dealt_in_turn():
    plan = plan_of(2, 3, 12)
    assert places_in_step(plan, 0) == ((0, 1, 2), (6, 7, 8))
    assert places_in_step(plan, 1) == ((3, 4, 5), (9, 10, 11))


def test_dropout_keys_follow_from_seed_step_and_place():
    assert dropout_keys(1, 2, (3, 4)) == [*dropout_keys(1, 2, (3,)), *dropout_keys(1, 2, (4,))]
    keys = {
        dropout_keys(seed, step, (place,))[0]
        for seed in range(3)
        for step in range(3)
        for place in range(3)
    }
    assert len(keys) == 27


def test_state_gives_the_step_to_continue_with():
    assert DataState().next_step(8) == 0
    assert DataState(24).next_step(8) == 3
    assert DataState(24).next_step(12) == 2
    assert (DataState(24).next_step(16), DataState(24).left_over(16)) == (1, 8)
    # In steps of 16 that end with 24 samples, and with all that follow.
    assert {DataState(24 + 16 * number).left_over(16) for number in range(5)} == {8}
    assert (DataState(24, 10).next_step(4), DataState(24, 10).left_over(4)) == (3, 2)
