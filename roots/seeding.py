"""Counter-based random numbers: pure functions of a key and an index, equal on every layout.

A parallel rank that owns elements [a, b) of a tensor computes exactly the numbers that one process
would have put there. Hence initial weights and dropout masks do not depend on how the work is cut,
need no generator state in checkpoints, and are recomputed instead of stored.

The generator is the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom
number generators", OOPSLA 2014) applied to key + (index + 1) * golden gamma, in wrapping int64.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_SECOND_STREAM = 0x632BE59BD9B4E019


def derive_key(*parts: int | str) -> int:
    """Derive a signed 64-bit key from a path such as (seed, "layers.3.mlp.up.weight").

    Stable across processes, machines and Python versions.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def random_bits(key: int | Tensor, index: Tensor) -> Tensor:
    """Return 64 random bits for every element of `index` (int64), as int64.

    `key` is an int or an int64 tensor that broadcasts against `index`.
    """
    # ~index = -(index + 1). Written so, because torch.compile folds sums and products of an arange
    # into addresses, which it takes not to overflow.
    state = ~index * -_signed(_GOLDEN_GAMMA) + key
    state = (state ^ _shift_right(state, 30)) * _signed(_MIX_1)
    state = (state ^ _shift_right(state, 27)) * _signed(_MIX_2)
    return state ^ _shift_right(state, 31)


def uniform(key: int | Tensor, index: Tensor) -> Tensor:
    """Uniform float64 numbers in [0, 1) with 53 random bits, one per element of `index`."""
    return _shift_right(random_bits(key, index), 11).to(torch.float64) * 2.0**-53


def normal(key: int | Tensor, index: Tensor) -> Tensor:
    """Standard normal float64 numbers, one per element of `index` (Box and Muller, 1958)."""
    second_key = key ^ _signed(_SECOND_STREAM)
    radius = torch.sqrt(-2.0 * torch.log1p(-uniform(key, index)))
    return radius * torch.cos(2.0 * math.pi * uniform(second_key, index))


def _signed(bits: int) -> int:
    """Reinterpret an unsigned 64-bit constant as int64."""
    return bits - (1 << 64) if bits >= 1 << 63 else bits


def _shift_right(value: Tensor, count: int) -> Tensor:
    """Logical right shift of int64 (torch's own shift carries the sign)."""
    return (value >> count) & ((1 << (64 - count)) - 1)
