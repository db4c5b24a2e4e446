"""Tensors in huge pages hold what they held, each alone, from an aligned address on."""

from __future__ import annotations

import torch

from roots.ops import empty_in_huge_pages, move_to_huge_pages
from roots.ops.few_rows.huge_pages import HUGE_PAGE_BYTES


def test_an_empty_tensor_begins_at_a_huge_page() -> None:
    tensor = empty_in_huge_pages((3, 5, 7), torch.bfloat16)
    assert (tensor.shape, tensor.dtype) == ((3, 5, 7), torch.bfloat16)
    assert tensor.is_contiguous()
    assert tensor.data_ptr() % HUGE_PAGE_BYTES == 0
    tensor.fill_(2.0)
    assert (tensor == 2).all()
    assert empty_in_huge_pages((0, 4), torch.float32).shape == (0, 4)


def test_moved_tensors_keep_their_values_and_their_identity() -> None:
    linear = torch.nn.Linear(33, 50)
    parameters = list(linear.parameters())
    before = [each.detach().clone() for each in parameters]
    counts = torch.arange(7, dtype=torch.int8)
    transposed = torch.randn(6, 4).T
    expected = transposed.clone()
    empty = torch.zeros(0, 3)
    on_meta = torch.zeros(2, device="meta")
    move_to_huge_pages([*parameters, counts, transposed, empty, on_meta])
    assert [id(each) for each in linear.parameters()] == [id(each) for each in parameters]
    for parameter, value in zip(parameters, before, strict=True):
        assert torch.equal(parameter.detach(), value)
        assert parameter.requires_grad
    assert counts.tolist() == list(range(7))
    assert torch.equal(transposed, expected)
    assert transposed.is_contiguous()
    assert parameters[0].data_ptr() % HUGE_PAGE_BYTES == 0
    held = [*parameters, counts, transposed]
    assert all(each.data_ptr() % 64 == 0 for each in held)
    ends = sorted((each.data_ptr(), each.data_ptr() + each.nbytes) for each in held)
    assert all(first[1] <= second[0] for first, second in zip(ends, ends[1:], strict=False))
    move_to_huge_pages([])


def test_memory_lives_as_long_as_a_tensor_of_it() -> None:
    tensors = [torch.full((1000,), float(i)) for i in range(3)]
    move_to_huge_pages(tensors)
    last = tensors.pop()
    del tensors
    view = last[10:20]
    del last
    assert (view == 2).all()
