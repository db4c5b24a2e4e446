"""Exposure against its definition, and the fitted tail against distributions that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from roots.inspection.audit.exposure import (
    CHANCE,
    SkewNormal,
    estimated_exposure,
    exact_exposure,
)


def test_exact_exposure_is_the_definition() -> None:
    others = np.arange(1.0, 1000.0)
    assert exact_exposure(0.5, others).bits == pytest.approx(math.log2(1000))
    assert exact_exposure(1000.0, others).bits == 0.0
    # 99 of 999 are likelier: rank 100.
    assert exact_exposure(99.5, others).bits == pytest.approx(math.log2(10))


def test_secrets_never_seen_have_the_exposure_of_chance() -> None:
    draws = np.random.default_rng(5)
    exact = [exact_exposure(draws.normal(), draws.normal(size=999)).bits for _ in range(4000)]
    deviation = CHANCE / math.sqrt(len(exact))  # of an exponential distribution: its mean
    assert np.mean(exact) == pytest.approx(CHANCE, abs=4 * deviation)
    estimated = [
        estimated_exposure(draws.normal(30, 5), draws.normal(30, 5, size=500), 10**9).bits
        for _ in range(1000)
    ]
    assert np.mean(estimated) == pytest.approx(CHANCE, abs=4 * CHANCE / math.sqrt(1000))


def test_share_of_the_sample_is_the_rank_where_it_is_some() -> None:
    sample = np.arange(999.0)
    found = estimated_exposure(98.5, sample, 10**9)
    assert (found.method, found.fit_distance) == ("sampled", None)
    assert found.bits == pytest.approx(math.log2(10))


def test_tail_of_a_normal_distribution_is_known() -> None:
    sample = np.random.default_rng(3).normal(50.0, 4.0, size=20_000)
    found = estimated_exposure(50.0 - 6 * 4.0, sample, 10**15)
    assert found.method == "fitted"
    # p(z < -6) = 9.866e-10; the skewness of so large a sample is 0 to 0.02.
    assert found.bits == pytest.approx(-math.log2(9.866e-10), abs=1.5)
    assert found.fit_distance is not None
    assert found.fit_distance < 0.02


@pytest.mark.parametrize("shape", [-6.0, -1.0, 0.5, 3.0])
def test_fit_finds_a_skew_normal_distribution_again(shape: float) -> None:
    delta = shape / math.sqrt(1 + shape**2)
    first, second = np.random.default_rng(7).normal(size=(2, 200_000))
    sample = 10.0 + 2.0 * (delta * np.abs(first) + math.sqrt(1 - delta**2) * second)
    fit = SkewNormal.fitted(sample)
    assert fit.distance(sample) < 0.01
    for quantile in (0.001, 0.1, 0.9):
        below = math.exp(fit.log_below(float(np.quantile(sample, quantile))))
        assert below == pytest.approx(quantile, rel=0.25)


def test_no_exposure_is_beyond_the_space_or_below_nothing() -> None:
    sample = np.random.default_rng(1).normal(100.0, 1.0, size=1000)
    assert estimated_exposure(0.0, sample, 1000).bits == pytest.approx(math.log2(1000))
    assert estimated_exposure(200.0, sample, 1000).bits == pytest.approx(0.0, abs=0.01)


def test_model_that_finds_all_secrets_alike_exposes_none() -> None:
    found = estimated_exposure(7.0, np.full(500, 7.0), 10**6)
    assert found.method == "sampled"
    assert found.bits == pytest.approx(1.0, abs=0.01)
