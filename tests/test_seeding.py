"""The generator against its definition in Python integers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roots.seeding import normal, random_bits, uniform


def split_mix_64(key: int, index: int) -> int:
    """Number `index` of SplitMix64 from state `key`, after Steele, Lea and Flood (2014)."""
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    return z - 2**64 if z >= 2**63 else z


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    keys=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
    first=st.integers(0, 2**63 - 10),
)
def test_random_bits_are_those_of_split_mix_64(keys: list[int], first: int) -> None:
    index = torch.arange(first, first + 9)
    expected = [[split_mix_64(key, i) for i in range(first, first + 9)] for key in keys]
    assert random_bits(torch.tensor(keys)[:, None], index).tolist() == expected
    assert random_bits(keys[0], index).tolist() == expected[0]


def test_normal_numbers_have_the_moments_of_a_normal_distribution() -> None:
    """And do not follow from the uniform ones of the same key, from which their size comes."""
    count = 200_000
    x = normal(7, torch.arange(count))
    # Five standard errors of the mean of x, x^2, x^3 and x^4.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**power).mean()) - moment) < 5 * (variance / count) ** 0.5
    signs, others = x.sign(), uniform(7, torch.arange(count)) - 0.5
    assert abs(float((signs * others).mean())) < 5 * (1 / 12 / count) ** 0.5
