"""Every pair of hosts once, and no host twice in a round."""

from __future__ import annotations

from itertools import combinations

import pytest

from roots.doctor.rounds import rounds


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 17])
def test_all_pairs_once_in_the_fewest_rounds(count: int) -> None:
    found = rounds(count)
    assert len(found) == (count - 1 if count % 2 == 0 else count)
    for pairs in found:
        hosts = [host for pair in pairs for host in pair]
        assert len(hosts) == len(set(hosts)) == count - count % 2
    assert sorted(pair for pairs in found for pair in pairs) == list(combinations(range(count), 2))


def test_one_host_has_nobody_to_meet() -> None:
    assert [pair for pairs in rounds(1) for pair in pairs] == []
