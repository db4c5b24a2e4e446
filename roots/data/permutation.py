"""A random order of any number of things, without an array that holds it.

`place_in_order(key, n, i)` is a bijection of 0 .. n - 1 for every key: a Feistel network (Luby,
Rackoff: "How to construct pseudorandom permutations from pseudorandom functions", 1988) over the
smallest even number of bits that holds n, walked until it falls below n (Black, Rogaway: "Ciphers
with arbitrary finite domains", 2002). At most four walks on average, and no memory: the order of
every epoch is there at once, and entry i does not depend on what was asked before.
"""

from __future__ import annotations

_ROUNDS = 8
_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def place_in_order(key: int, size: int, index: int) -> int:
    """Return which of `size` things stands at place `index` of the order that `key` names."""
    assert 0 <= index < size, "no such place"
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    value = index
    while True:
        left, right = value >> half, value & low
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mix(key, number, right) & low)
        value = left << half | right
        if value < size:
            return value


def _mix(key: int, number: int, value: int) -> int:
    """Return 64 bits that depend on all three: the finaliser of SplitMix64, as in roots.seeding."""
    state = (key + (value << 4 | number) * _GOLDEN_GAMMA) & _MASK
    state = (state ^ state >> 30) * _MIX_1 & _MASK
    state = (state ^ state >> 27) * _MIX_2 & _MASK
    return state ^ state >> 31
