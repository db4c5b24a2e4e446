"""Intervals hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from roots.evaluation.intervals import (
    mean_interval,
    middle_of,
    resampled_means,
    share_interval,
)


def test_shares_against_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: Wilson's score interval.
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = share_interval(successes, trials)
        assert found == pytest.approx((low, high), abs=5e-5)
    assert share_interval(0, 0) == (0.0, 1.0)


def test_mean_is_held_by_nearly_all_intervals() -> None:
    draws = np.random.default_rng(1)
    held = 0
    for number in range(100):
        low, high = mean_interval(draws.exponential(2.0, size=60), seed=number)
        held += low <= 2.0 <= high
    assert 88 <= held <= 99


def test_all_columns_are_measured_on_the_same_draws() -> None:
    values = np.random.default_rng(2).normal(size=(50, 1))
    means = resampled_means(np.concatenate([values, values + 1.0], axis=1), seed=3)
    assert means.shape == (2000, 2)
    assert np.allclose(means[:, 1] - means[:, 0], 1.0)
    assert np.array_equal(means, resampled_means(np.concatenate([values, values + 1], 1), seed=3))


def test_middle_holds_95_percent() -> None:
    assert middle_of(np.arange(1001.0)) == (25.0, 975.0)
