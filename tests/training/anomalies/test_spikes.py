"""What counts as a spike: standard deviations above the mean of the losses before it."""

from __future__ import annotations

import math
import statistics

import pytest

from roots.training.anomalies.spikes import LossWindow


def test_the_score_is_that_of_the_last_losses_alone() -> None:
    losses = [9.0, 3.0, 4.0, 5.0]
    window = LossWindow(3, losses)
    deviation = statistics.pstdev([3.0, 4.0, 5.0])
    assert window.losses == [3.0, 4.0, 5.0]
    assert window.zscore(6.0) == pytest.approx(2.0 / deviation)
    assert window.zscore(1.0) == pytest.approx(-3.0 / deviation)
    window.add(6.0)
    assert window.losses == [4.0, 5.0, 6.0]


def test_nothing_is_a_spike_until_the_window_is_full() -> None:
    window = LossWindow(3, [1.0, 1.1])
    assert window.zscore(1e9) == 0.0
    window.add(0.9)
    assert window.zscore(1e9) > 1e9


def test_losses_that_are_all_alike_leave_room_for_the_next_digit() -> None:
    window = LossWindow(2, [2.0, 2.0])
    assert window.zscore(2.001) == pytest.approx(0.5)
    assert LossWindow(2, [0.0, 0.0]).zscore(1.0) == math.inf


def test_what_is_not_finite_never_enters() -> None:
    window = LossWindow(2, [1.0])
    for loss in (math.nan, math.inf):
        window.add(loss)
    assert window.losses == [1.0]
