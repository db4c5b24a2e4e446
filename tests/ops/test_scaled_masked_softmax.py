"""scaled_masked_softmax against the composition of torch operations.

Legend: B rows, N heads, T queries, S keys.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.ops import scaled_masked_softmax
from roots.ops.scaled_masked_softmax import IMPLEMENTATIONS, scaled_masked_softmax_reference
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    all_kernels,
    assert_as_accurate,
    both_strides,
    plain_implementations,
    random_inputs,
)

# One for each way a GPU holds a row, in and off the 16-byte grid, and one longer than all.
SHAPES = [
    (2, 3, 5, 7),
    (1, 2, 3, 257),
    (2, 1, 4, 1024),
    (1, 1, 3, 1029),
    (1, 1, 2, 4096),
    (1, 1, 2, 16380),
    (1, 1, 2, 20005),
]
# Masks by their broadcast dims.
KINDS = ["none", "visible", "visible all", "added", "added all"]
SCALE = 0.3


def make_mask(kind: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor | None:
    """About a quarter of the keys hidden, never the first."""
    if kind == "none":
        return None
    mask_shape = shape if "all" in kind else (shape[0], 1, 1, shape[3])
    generator = torch.Generator().manual_seed(3)
    visible = torch.rand(mask_shape, generator=generator) < 0.75
    visible[..., 0] = True
    if kind.startswith("visible"):
        return visible.to(device)
    added = torch.randn(mask_shape, generator=generator).masked_fill(~visible, -torch.inf)
    return added.to(device, dtype)


def formula(scores: Tensor, mask: Tensor | None, causal: bool, scale: float = SCALE) -> Tensor:
    """As a user of torch writes it; every query must see a key."""
    logits = scores * scale
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        logits = logits + mask.to(logits.dtype)
    if causal:
        queries, keys = scores.shape[2:]
        later = torch.ones(queries, keys, dtype=torch.bool, device=scores.device)
        logits = logits.masked_fill(later.triu(keys - queries + 1), -torch.inf)
    return logits.softmax(-1)


@all_dtypes
@all_implementations
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax_is_as_accurate_as_the_baseline(
    dtype: torch.dtype,
    implementation: str,
    device: str,
    causal: bool,
    kind: str,
    shape: tuple[int, ...],
) -> None:
    mask = make_mask(kind, shape, dtype, device)

    def op(scores: Tensor) -> Tensor:
        return scaled_masked_softmax(
            scores, mask, SCALE, causal=causal, implementation=implementation
        )

    def baseline(scores: Tensor) -> Tensor:
        return formula(scores, mask, causal)

    assert_as_accurate(op, baseline, random_inputs(shape), dtype, device=device)


@all_dtypes
@all_implementations
@both_strides
def test_strided_scores_and_masks(
    dtype: torch.dtype, implementation: str, device: str, strided: bool
) -> None:
    shape = (2, 3, 4, 33)
    full = make_mask("added all", (2, 3, 33, 4), dtype, device)
    assert full is not None
    for mask in (
        full.transpose(2, 3),
        full.transpose(2, 3)[:, :1],
        full.transpose(2, 3)[:1, :, 1:2],
    ):
        mask = mask.clamp(min=-100.0) if not strided else mask.clamp(min=-100.0).mT.contiguous().mT

        def op(scores: Tensor, mask: Tensor = mask) -> Tensor:
            return scaled_masked_softmax(scores, mask, SCALE, implementation=implementation)

        def baseline(scores: Tensor, mask: Tensor = mask) -> Tensor:
            return formula(scores, mask, False)

        inputs = random_inputs(shape)
        assert_as_accurate(op, baseline, inputs, dtype, strided=strided, device=device)


@all_dtypes
@all_implementations
def test_pointers_off_the_16_byte_grid(
    dtype: torch.dtype, implementation: str, device: str
) -> None:
    """Contiguous views that begin anywhere in their storage."""
    size = 2 * 3 * 40
    for offset in (1, 3, 7):
        storage = random_inputs((size + offset,))[0].to(device, dtype)
        scores = storage[offset:].view(1, 2, 3, 40)
        visible = torch.ones(41 + offset, dtype=torch.bool, device=device)
        visible[offset + 5] = False
        mask = visible[offset : offset + 40].view(1, 1, 1, 40)
        ours = scaled_masked_softmax(scores, mask, SCALE, implementation=implementation)
        copied = scaled_masked_softmax(scores.clone(), mask.clone(), SCALE, implementation="torch")
        torch.testing.assert_close(ours, copied)
        grad = storage.flip(0)[offset:].view(1, 2, 3, 40)
        gradients = [
            torch.autograd.grad(
                scaled_masked_softmax(leaf, mask, SCALE, implementation=implementation), leaf, grad
            )[0]
            for leaf in (scores.detach().requires_grad_(), scores.clone().requires_grad_())
        ]
        torch.testing.assert_close(gradients[0], gradients[1])


@all_dtypes
@all_implementations
@pytest.mark.parametrize("keys", [6, 130, 5000])
def test_a_query_without_keys_gives_zeros_and_no_gradient(
    dtype: torch.dtype, implementation: str, device: str, keys: int
) -> None:
    (scores,) = (each.to(device, dtype) for each in random_inputs((1, 2, 3, keys)))
    scores[0, 0, 1, 2] = torch.nan
    visible = torch.ones(1, 1, 3, keys, dtype=torch.bool, device=device)
    visible[:, :, 1] = False
    added = torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, -torch.inf)
    for mask in (visible, added):
        leaf = (scores if mask is visible else scores.nan_to_num()).clone().requires_grad_()
        y = scaled_masked_softmax(leaf, mask, SCALE, implementation=implementation)
        (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
        assert not y[:, :, 1].any()
        assert not gradient[:, :, 1].any()
        torch.testing.assert_close(
            y[:, :, ::2].float().sum(-1), torch.ones(1, 2, 2, device=device), rtol=0.02, atol=0
        )
        assert gradient[:, :, ::2].isfinite().all()


@all_implementations
def test_more_queries_than_keys_leave_the_first_without(implementation: str, device: str) -> None:
    """T 5, S 3: queries 0 and 1 come before key 0."""
    scores = torch.zeros(1, 1, 5, 3, device=device)
    y = scaled_masked_softmax(scores, causal=True, implementation=implementation)
    third = 1 / 3
    rows = [[0, 0, 0], [0, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [third, third, third]]
    torch.testing.assert_close(y[0, 0], torch.tensor(rows, device=device, dtype=torch.float32))


@all_dtypes
@all_implementations
@pytest.mark.parametrize("keys", [9, 300, 5000])
def test_non_finite_scores_are_not_hidden(
    dtype: torch.dtype, implementation: str, device: str, keys: int
) -> None:
    for bad in (torch.inf, torch.nan):
        (scores,) = (each.to(device, dtype) for each in random_inputs((1, 1, 3, keys)))
        scores[0, 0, 1, keys - 2] = bad
        y = scaled_masked_softmax(scores, implementation=implementation)
        assert y.isfinite().all(-1).flatten().tolist() == [True, False, True]
        hidden = torch.ones(1, 1, 1, keys, dtype=torch.bool, device=device)
        hidden[..., keys - 2] = False
        y = scaled_masked_softmax(scores, hidden, implementation=implementation)
        assert y.isfinite().all()


drawn_shapes = given(
    shape=st.tuples(*(st.integers(0, size) for size in (2, 3, 5)), st.integers(1, 80)),
    kind=st.sampled_from(KINDS),
    causal=st.booleans(),
)


def check_any_shape(
    implementation: str, dtype: torch.dtype, tolerance: float, **drawn: Any
) -> None:
    shape, causal = drawn["shape"], drawn["causal"]
    if causal and shape[2] > shape[3]:
        shape = (*shape[:2], shape[3], shape[3])
    mask = make_mask(drawn["kind"], shape, dtype, "cpu")
    (scores,) = (each.to(dtype) for each in random_inputs(shape))
    results = []
    for call in (
        lambda x: scaled_masked_softmax(
            x, mask, -2.0, causal=causal, implementation=implementation
        ),
        lambda x: formula(x, mask, causal, -2.0),
    ):
        leaf = scores.clone().requires_grad_()
        y = call(leaf)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaf)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@plain_implementations
@settings(max_examples=30, deadline=None, derandomize=True)
@drawn_shapes
def test_softmax_of_any_shape(implementation: str, **drawn: Any) -> None:
    check_any_shape(implementation, torch.float64, 1e-12, **drawn)


@all_implementations(IMPLEMENTATIONS[:2])
@settings(max_examples=30, deadline=None, derandomize=True)
@drawn_shapes
def test_softmax_of_any_shape_by_kernels(implementation: str, **drawn: Any) -> None:
    check_any_shape(implementation, torch.float32, 2e-6, **drawn)


def test_gradients_of_the_reference() -> None:
    scores, added = random_inputs((2, 2, 3, 4), (2, 1, 3, 4))
    added[0, 0, 1] = -torch.inf
    scores.requires_grad_()
    added.requires_grad_()

    def call(scores: Tensor, bias: Tensor) -> Tensor:
        return scaled_masked_softmax_reference(scores, bias, SCALE, causal=True)

    assert torch.autograd.gradcheck(lambda x: call(x, added.detach()), scores)
    finite = added.detach().clamp(min=-5.0).requires_grad_()
    assert torch.autograd.gradcheck(call, (scores, finite))


def test_a_learned_mask_gets_its_gradient_from_torch() -> None:
    scores, bias = (
        each.float().requires_grad_() for each in random_inputs((1, 2, 3, 4), (1, 2, 3, 4))
    )
    y = scaled_masked_softmax(scores, bias)
    dscores, dbias = torch.autograd.grad(y.square().sum(), (scores, bias))
    torch.testing.assert_close(dscores, dbias)


@all_kernels
def test_opcheck(namespace: str, device: str) -> None:
    ops = getattr(torch.ops, namespace)
    shape = (2, 2, 3, 17)
    scores = random_inputs(shape)[0].bfloat16().to(device).requires_grad_()
    for kind in ("visible", "added all"):
        mask = make_mask(kind, shape, torch.bfloat16, device)
        torch.library.opcheck(ops.scaled_masked_softmax_forward, (scores, mask, SCALE, True))
    y = ops.scaled_masked_softmax_forward(scores, None, SCALE, False).detach()
    torch.library.opcheck(ops.scaled_masked_softmax_backward, (y.clone(), y, SCALE))


@all_kernels
def test_masks_beyond_2_to_the_31_elements(namespace: str, device: str) -> None:
    """Strides of the mask of 2^31 elements, in storage that is touched in a few places only."""
    storage = torch.empty((1 << 31) + 100, dtype=torch.bool, device=device)
    mask = storage.as_strided((2, 1, 1, 100), (1 << 31, 0, 0, 1))
    mask.copy_(torch.rand(2, 1, 1, 100) < 0.5)
    scores = random_inputs((2, 1, 3, 100))[0].float().to(device)
    forward = getattr(torch.ops, namespace).scaled_masked_softmax_forward
    found, expected = (forward(scores, each, 1.0, False) for each in (mask, mask.clone()))
    torch.testing.assert_close(found, expected)


@all_kernels
@pytest.mark.parametrize(
    "scores, mask, message",
    [
        (
            torch.zeros(2, 3, 4),
            None,
            r"scores \[2, 3, 4\] must have four dims: batch, heads, queries and keys.",
        ),
        (
            torch.zeros(2, 3, 4, 5),
            torch.zeros(2, 3, 1, 4),
            r"mask \[2, 3, 1, 4\] must have the shape of scores \[2, 3, 4, 5\], "
            r"or 1 in place of batch, heads or queries.",
        ),
        (
            torch.zeros(2, 3, 4, 5),
            torch.zeros(2, 1, 1, 5, dtype=torch.float16),
            "mask must be bool or have the dtype of scores.",
        ),
        (
            torch.zeros(2, 3, 4, 5, dtype=torch.float64),
            None,
            "scores must be float32, float16 or bfloat16.",
        ),
    ],
)
def test_wrong_operands_are_refused(
    namespace: str, device: str, scores: Tensor, mask: Tensor | None, message: str
) -> None:
    ops = getattr(torch.ops, namespace)
    operands = (scores.to(device), mask if mask is None else mask.to(device))
    with pytest.raises(RuntimeError, match=f"^{message}"):
        ops.scaled_masked_softmax_forward(*operands, 1.0, False)
