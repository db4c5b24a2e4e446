"""The emulated instructions against numpy: matrix products, their loads, asynchronous copies."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

Call = Callable[..., str]


def bits(x: torch.Tensor) -> np.ndarray:
    return x.contiguous().view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_multiply_add(call: Call, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(16, 16, generator=generator).to(dtype)
    b = torch.randn(16, 8, generator=generator).to(dtype)
    start = torch.randn(16, 8, generator=generator)
    d = start.numpy().copy()
    assert call("product", bits(a), bits(b), d, int(dtype == torch.bfloat16)) == ""
    np.testing.assert_allclose(d, (start.double() + a.double() @ b.double()).numpy(), atol=2e-6)


def test_multiply_add_of_special_values(call: Call) -> None:
    a, b = torch.zeros(16, 16), torch.zeros(16, 8)
    a[0, 0], a[1, 1], a[2, 2], b[:, 3] = 6e-8, 65504, torch.inf, 1
    d = np.zeros((16, 8), dtype=np.float32)
    assert call("product", bits(a.half()), bits(b.half()), d, 0) == ""
    np.testing.assert_array_equal(d[:3, 3], [2.0**-24, 65504, np.inf])
    assert np.isnan(d[2, 0])


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_load_matrices(call: Call, seed: int, count: int, transposed: int) -> None:
    matrices = np.arange(count * 64, dtype=np.uint16).reshape(count, 8, 8)
    registers = np.zeros((32, count), dtype=np.uint32)
    assert call("load", matrices, registers, count, transposed, 0) == ""
    seen = matrices.transpose(0, 2, 1) if transposed else matrices
    pairs = np.ascontiguousarray(seen).view(np.uint32).reshape(count, 32)
    np.testing.assert_array_equal(registers, pairs.T)


def test_misplaced_rows_are_named(call: Call) -> None:
    matrices = np.zeros(256, dtype=np.uint16)
    registers = np.zeros((32, 4), dtype=np.uint32)
    assert "ldmatrix of 16 bytes at address 0x" in call("load", matrices, registers, 4, 0, 1)
    message = call("load", matrices, registers, 4, 0, 8)
    assert "outside of the block's shared memory" in message


def test_copies_land_when_they_are_waited_for(call: Call, seed: int) -> None:
    x = np.arange(2 * 4 * 64, dtype=np.float32).reshape(2, -1)
    for wait, landed in ((0, (True, True)), (1, (False, False)), (2, (True, False))):
        y = np.zeros_like(x)
        assert call("copies", aligned(x), y, 64, wait, 16) == ""
        for group in range(2):
            if landed[group]:
                np.testing.assert_array_equal(y[group], x[group])
            else:
                assert np.isnan(y[group]).all()


@pytest.mark.parametrize("source_bytes", [0, 4, 12])
def test_copies_fill_with_zeros(call: Call, source_bytes: int) -> None:
    x = np.arange(1, 2 * 4 * 32 + 1, dtype=np.float32).reshape(2, 32, 4)
    y = np.zeros_like(x)
    assert call("copies", aligned(x), y, 32, 0, source_bytes) == ""
    expected = x.copy()
    expected[:, :, source_bytes // 4 :] = 0
    np.testing.assert_array_equal(y, expected)


def test_misplaced_copies_are_named(call: Call) -> None:
    x = aligned(np.zeros(64, dtype=np.float32))
    assert call("misplaced_copy", x, None, 0, 0) == ""
    for shifts, name in (((1, 0), "into shared"), ((0, 2), "from global")):
        message = call("misplaced_copy", x, None, *shifts)
        assert re.search(rf"cp.async {name} memory of 16 bytes at address .* no multiple", message)
    assert "outside of the block's shared memory" in call("misplaced_copy", x, None, 16, 0)
    assert "outside of the block's shared memory" in call("misplaced_copy", x, x, 0, 0)
    refused = call("copies", x, np.zeros(64, dtype=np.float32), 1, 0, 17)
    assert "cp.async of 17 bytes; it copies 0 to 16" in refused


def test_exp2(call: Call) -> None:
    x = np.float32([0, 1, -1, 10.5, -126, -127, -200, -np.inf, 128])
    y = np.zeros_like(x)
    assert call("exp2_of", x, y, x.size) == ""
    expected = np.float32([1, 2, 0.5, 2**10.5, 2.0**-126, 0, 0, 0, np.inf])
    np.testing.assert_allclose(y, expected, rtol=2e-7)


def aligned(x: np.ndarray) -> np.ndarray:
    """A copy of x at a multiple of 16 bytes."""
    memory = np.empty(x.size + 4, dtype=x.dtype)
    start = -memory.ctypes.data // x.itemsize % 4
    y = memory[start : start + x.size].reshape(x.shape)
    y[...] = x
    return y
