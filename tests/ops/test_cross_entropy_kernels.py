"""The kernels of cross_entropy: memory, wide storage, opcheck, and what they refuse."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from roots.ops import cross_entropy, softmax_gradient_, softmax_statistics
from tests.ops.accuracy import all_dtypes, all_kernels, random_inputs
from tests.ops.test_cross_entropy import labels

MODULE = importlib.import_module("roots.ops.cross_entropy")


class _LargestWideTensor(TorchDispatchMode):
    """Remembers the largest float32 tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float32:
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("implementation, most", [("roots", 64), ("torch", 4 * 100)])
def test_no_fp32_copy_of_16_bit_logits_is_made(
    implementation: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "_CPU_BLOCK_ELEMENTS", 4 * 100)
    logits_MV, labels_M = random_inputs((64, 100))[0].bfloat16(), labels(64, 100)
    with _LargestWideTensor() as mode:
        local = softmax_statistics(logits_MV, labels_M, implementation=implementation)
        weights_M = torch.ones(64)
        softmax_gradient_(logits_MV, *local[:2], labels_M, weights_M, implementation=implementation)
    assert mode.elements == most


@all_kernels
@all_dtypes
def test_rows_beyond_2_to_the_31_elements(namespace: str, device: str, dtype: torch.dtype) -> None:
    """Rows 2^31 elements apart, in storage that is reserved but touched in a few places only."""
    ops = getattr(torch.ops, namespace)
    storage = torch.empty((1 << 31) + 100, dtype=dtype, device=device)
    logits_Mv = storage.as_strided((2, 100), (1 << 31, 1))
    logits_Mv.copy_(random_inputs((2, 100))[0])
    labels_M = labels(2, 100, device)
    expected = ops.softmax_statistics(logits_Mv.clone(), labels_M, 0)
    found = ops.softmax_statistics(logits_Mv, labels_M, 0)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)
    operands = (*found[:2], labels_M, torch.ones(2, device=device), 0, 100, 0.0, 0.0)
    gradient_Mv = ops.softmax_gradient(logits_Mv, *operands)
    ops.softmax_gradient_(logits_Mv, *operands)
    assert torch.equal(logits_Mv, gradient_Mv)


def kernel_operands(device: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Operands of softmax_gradient by name, in order."""
    logits = random_inputs((4, 37))[0].to(device, dtype)
    found = softmax_statistics(logits, labels(4, 37, device))
    return {
        "logits": logits,
        "row_max": found.row_max_M,
        "sum_exp": found.sum_exp_M,
        "labels": labels(4, 37, device),
        "row_weights": torch.ones(4, device=device),
        "first": 0,
        "vocab_size": 37,
        "label_smoothing": 0.1,
        "z_loss": 0.0,
    }


@all_kernels
def test_opcheck(namespace: str, device: str) -> None:
    ops = getattr(torch.ops, namespace)
    operands = kernel_operands(device)
    logits, labels_M = operands["logits"], operands["labels"]
    torch.library.opcheck(ops.softmax_statistics, (logits, labels_M, 0))
    torch.library.opcheck(ops.softmax_statistics, (logits[:0], labels_M[:0], 0))
    torch.library.opcheck(ops.softmax_gradient, tuple(operands.values()))
    torch.library.opcheck(ops.softmax_gradient_, tuple(operands.values()))


def test_compiles_into_one_graph() -> None:
    logits_MV, labels_M = random_inputs((4, 37))[0].float().requires_grad_(), labels(4, 37)

    def loss(logits_MV: Tensor) -> Tensor:
        return cross_entropy(logits_MV, labels_M, z_loss=0.1, implementation="roots").sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (ours,) = torch.autograd.grad(compiled(logits_MV), logits_MV)
    (expected,) = torch.autograd.grad(loss(logits_MV), logits_MV)
    assert torch.equal(ours, expected)


@all_kernels
@pytest.mark.parametrize(
    "name, value, message",
    [
        (
            "logits",
            torch.zeros(4),
            r"logits \[4\] must have two dims: tokens and vocabulary.",
        ),
        (
            "logits",
            torch.zeros(4, 37, dtype=torch.float64),
            r"logits must be float32, float16 or bfloat16.",
        ),
        (
            "labels",
            torch.zeros(3, dtype=torch.int64),
            r"labels \[3\] must have one value for every row of logits \[4, 37\].",
        ),
        ("labels", torch.zeros(4, dtype=torch.int32), "labels must be int64."),
        ("row_weights", torch.ones(4, dtype=torch.float64), "row_weights must be float32."),
        ("vocab_size", 36, r"vocab_size 36 must be at least first \+ width, 0 \+ 37."),
    ],
)
def test_wrong_operands_are_refused(
    namespace: str, device: str, name: str, value: Any, message: str
) -> None:
    operands = kernel_operands(device)
    operands[name] = value.to(device) if isinstance(value, Tensor) else value
    ops = getattr(torch.ops, namespace)
    for kernel in (ops.softmax_gradient, ops.softmax_gradient_):
        with pytest.raises(RuntimeError, match=f"^{message}"):
            kernel(*operands.values())


@all_kernels
def test_overwriting_needs_columns_side_by_side(namespace: str, device: str) -> None:
    operands = kernel_operands(device)
    operands["logits"] = operands["logits"].t().contiguous().t()
    message = (
        "^logits must have the columns of a row side by side, not 4 elements apart, "
        "to be overwritten; pass contiguous logits."
    )
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops, namespace).softmax_gradient_(*operands.values())
