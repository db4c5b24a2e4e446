"""check_finite against a loop over isfinite: no rounding, so all implementations agree exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.errors import RootsError
from roots.ops import check_finite
from tests.ops.accuracy import all_dtypes, all_implementations, all_kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BAD = (torch.inf, -torch.inf, torch.nan)
# Around 16 bytes, a warp's share, a CPU's chunk, a GPU block's 32 KB.
SIZES = (1, 2, 7, 8, 9, 255, 4097, 8192, 8193, 16384, 16391, 20000)


def expected(tensors: list[Tensor]) -> int:
    bad = [i for i, tensor in enumerate(tensors) if not tensor.isfinite().all()]
    return bad[0] if bad else -1


def spread(tensor: Tensor) -> Tensor:
    """The same values between infinities that are none of its elements."""
    wide = torch.full((*tensor.shape, 3), torch.inf, dtype=tensor.dtype, device=tensor.device)
    wide[..., 1] = tensor
    return wide[..., 1]


@all_dtypes
@all_implementations
@pytest.mark.parametrize("size", SIZES)
def test_one_bad_number_anywhere(
    dtype: torch.dtype, implementation: str, device: str, size: int
) -> None:
    """Also where it begins off the 16-byte grid, between infinities of others."""
    for offset in (0, 1, 3):
        storage = torch.full((size + offset + 9,), torch.inf, dtype=dtype, device=device)
        tensor = storage[offset : offset + size]
        # The largest finite number, whose bits are next to infinity's.
        tensor.fill_(torch.finfo(dtype).max)
        tensor[1::2] *= -1
        assert check_finite([tensor], implementation=implementation).tolist() == [-1]
        for turn, at in enumerate({0, size // 2, size - 1, max(size - 9, 0), min(8, size - 1)}):
            before = tensor[at].item()
            tensor[at] = BAD[turn % 3]
            found = check_finite([tensor], implementation=implementation)
            assert found.tolist() == [0], f"offset {offset}, element {at}"
            tensor[at] = before


@all_implementations
def test_the_first_of_several_is_told(implementation: str, device: str) -> None:
    """Also across the 96 tensors of a launch, with all dtypes mixed and empty tensors between."""
    tensors = [
        torch.zeros((0, 3) if i % 7 == 6 else (i % 5 + 1, 4), dtype=DTYPES[i % 3], device=device)
        for i in range(300)
    ]
    assert check_finite(tensors, implementation=implementation).item() == -1
    for i in (299, 250, 193, 192, 191, 96, 95, 1, 0):
        tensors[i].view(-1)[-1] = BAD[i % 3]
        assert check_finite(tensors, implementation=implementation).item() == i


@all_implementations
def test_result_is_one_integer_without_gradient(implementation: str, device: str) -> None:
    leaf = torch.ones(4, device=device, requires_grad=True)
    found = check_finite((leaf * 2, leaf), implementation=implementation)
    assert (found.dtype, found.shape, found.device) == (torch.int64, (1,), leaf.device)
    assert not found.requires_grad


@all_implementations
def test_only_empty_tensors_are_finite(implementation: str, device: str) -> None:
    tensors = [torch.zeros(0, 5, device=device), torch.zeros(0, dtype=torch.bfloat16).to(device)]
    assert check_finite(tensors, implementation=implementation).item() == -1


@all_dtypes
@all_implementations
def test_only_elements_count(dtype: torch.dtype, implementation: str, device: str) -> None:
    """Views with infinities in their gaps, transposed, overlapping and of no dims."""
    plain = torch.arange(60.0, device=device).to(dtype).view(3, 4, 5)
    views = [spread(plain), plain.permute(2, 0, 1), plain[:1].expand(4, 4, 5), plain[1:, ::2]]
    tensors = [*views, plain.new_tensor(1.0)]
    assert check_finite(tensors, implementation=implementation).item() == -1
    for i, at in ((4, ()), (3, (0, 1, 2)), (0, (2, 3, 4))):
        tensors[i][at] = torch.nan
        # The views 1 to 3 share their storage.
        assert check_finite(tensors, implementation=implementation).item() == expected(tensors)


drawn_tensors = given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=8),
    bad=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 63999)), max_size=3),
    dtypes=st.integers(0, 26),
    strided=st.booleans(),
)


@all_implementations
@settings(max_examples=40, deadline=None, derandomize=True)
@drawn_tensors
def test_any_tensors(
    implementation: str,
    shapes: list[list[int]],
    bad: list[tuple[int, int]],
    dtypes: int,
    strided: bool,
) -> None:
    tensors = [
        torch.ones(shape, dtype=DTYPES[dtypes // 3**i % 3]) for i, shape in enumerate(shapes)
    ]
    for i, at in bad:
        if i < len(tensors) and tensors[i].numel() > 0:
            tensors[i].view(-1)[at % tensors[i].numel()] = BAD[at % 3]
    given_tensors = [spread(tensor) if strided else tensor for tensor in tensors]
    found = check_finite(given_tensors, implementation=implementation)
    assert found.item() == expected(tensors)


def test_float64_goes_to_torch() -> None:
    tensors = [torch.zeros(3), torch.tensor([1e300], dtype=torch.float64)]
    assert check_finite(tensors).item() == -1
    with pytest.raises(RootsError, match=r"ops\.check_finite='roots': cannot run here: .*float64"):
        check_finite(tensors, implementation="roots")


@all_kernels
def test_opcheck(namespace: str, device: str) -> None:
    ops = getattr(torch.ops, namespace)
    tensors = [torch.ones(3, 5, dtype=dtype, device=device) for dtype in DTYPES]
    tensors[1][0, 0] = torch.nan
    torch.library.opcheck(ops.check_finite, (tensors,))
    assert ops.check_finite(tensors).item() == 1


@all_implementations
def test_under_compile(implementation: str, device: str) -> None:
    def call(tensors: list[Tensor]) -> Tensor:
        return check_finite(tensors, implementation=implementation) + 1

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    tensors = [torch.zeros(3, device=device), torch.full((2,), torch.inf, device=device)]
    assert compiled(tensors).item() == 2


@all_kernels
def test_elements_2_to_the_31_apart(namespace: str, device: str) -> None:
    """Storage that is touched in a few places only."""
    storage = torch.empty((1 << 31) + 100, dtype=torch.float16, device=device)
    tensor = storage.as_strided((2, 50), (1 << 31, 2))
    tensor.zero_()
    found = getattr(torch.ops, namespace).check_finite
    assert found([tensor]).item() == -1
    tensor[1, 49] = torch.inf
    assert found([tensor]).item() == 0


def test_wrong_lists_are_refused() -> None:
    with pytest.raises(
        RootsError,
        match=r"^tensors of check_finite='\[\]': must hold at least one tensor; "
        "call it only where there is one$",
    ):
        check_finite([])
    with pytest.raises(
        RootsError,
        match=r"^device of tensor 1 of check_finite='meta': must be that of tensor 0, cpu; "
        "call it once for each device$",
    ):
        check_finite([torch.zeros(2), torch.zeros(2, device="meta")])


@all_kernels
def test_other_dtypes_are_refused_by_the_kernels(namespace: str, device: str) -> None:
    tensors = [torch.zeros(2, device=device), torch.zeros(2, dtype=torch.float64, device=device)]
    with pytest.raises(RuntimeError, match=r"^tensor 1 must be float32, float16 or bfloat16\.$"):
        getattr(torch.ops, namespace).check_finite(tensors)
