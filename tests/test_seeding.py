"""The generator against its definition in Python integers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roots.seeding import random_bits


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
