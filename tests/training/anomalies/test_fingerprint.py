"""One number for all bits of a tensor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from roots.training.anomalies.fingerprint import fingerprint, fingerprints

# Shorter than a word, not of whole words, longer than a row of words, and not of whole rows.
LENGTHS = (1, 3, 5, 2048, 5001)


def numbers(length: int, dtype: torch.dtype) -> Tensor:
    return torch.linspace(-3, 5, length).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_flipped_bit_shows(length: int, dtype: torch.dtype) -> None:
    tensor = numbers(length, dtype)
    before = int(fingerprint(tensor))
    memory = tensor.view(torch.uint8)
    for place in range(0, len(memory), max(1, len(memory) // 20)):
        for bit in range(8):
            memory[place] ^= 1 << bit
            assert int(fingerprint(tensor)) != before, (place, bit)
            memory[place] ^= 1 << bit
    assert int(fingerprint(tensor)) == before


def test_equal_tensors_are_equal_wherever_they_lie() -> None:
    """Also in the middle of a flat buffer, where a word of eight bytes does not begin."""
    tensor = numbers(4097, torch.bfloat16)
    flat = torch.cat([torch.zeros(1, dtype=torch.bfloat16), tensor])
    strided = torch.stack([tensor, tensor], dim=1)[:, 0]
    found = fingerprints([tensor, flat[1:], strided, tensor.view(17, 241)])
    assert len(set(found.tolist())) == 1
    assert 0 <= int(found[0]) < 2**62


def test_rows_that_change_places_show() -> None:
    tensor = torch.arange(8192, dtype=torch.float32).view(2, 4096)
    assert int(fingerprint(tensor)) != int(fingerprint(tensor.flip(0)))
    assert int(fingerprint(torch.zeros(3))) != int(fingerprint(-torch.zeros(3)))
