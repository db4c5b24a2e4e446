"""A random order without an array: every place once, and no pattern to see."""

from __future__ import annotations

import numpy as np
import pytest

from roots.data.permutation import place_in_order


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 64, 1000, 1025])
def test_every_thing_has_one_place(size: int) -> None:
    for key in (0, -7, 2**63 - 1):
        assert sorted(place_in_order(key, size, i) for i in range(size)) == list(range(size))


def test_orders_of_different_keys_are_unrelated() -> None:
    """Spearman's rho of n points has variance 1 / (n - 1) under independence: 5 deviations."""
    size = 1000
    orders = [[place_in_order(key, size, i) for i in range(size)] for key in range(6)]
    limit = 5 / np.sqrt(size - 1)
    for a in range(6):
        assert abs(np.corrcoef(orders[a], np.arange(size))[0, 1]) < limit
        assert abs(np.corrcoef(orders[a][1:], orders[a][:-1])[0, 1]) < limit
        for b in range(a):
            assert abs(np.corrcoef(orders[a], orders[b])[0, 1]) < limit


def test_every_order_of_few_things_is_equally_likely() -> None:
    """Chi-square of 24 orders over 4800 keys: mean 23, deviation sqrt(46); five of them."""
    counts: dict[tuple[int, ...], int] = {}
    for key in range(4800):
        order = tuple(place_in_order(key * 7919, 4, i) for i in range(4))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 23 + 5 * 46**0.5


def test_large_sizes_need_no_memory() -> None:
    size = 10**15 + 3
    places = {place_in_order(5, size, i) for i in range(200)}
    assert len(places) == 200
    assert max(places) > size // 2
