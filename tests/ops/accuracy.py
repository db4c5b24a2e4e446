"""The rule by which an operator is judged: twice the error of an honest baseline, and a tiny floor.

Gold is the formula in float64 on the very inputs that the op gets. The baseline is the same formula
in plain torch operations of the op's dtype. For the output and every gradient,
    max|op - gold| <= 2 max|baseline - gold| + floor
where the floor is half a unit in the last place of the largest gold value: what rounding the exact
result to the dtype costs. No tolerance is chosen by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

Op = Callable[..., Tensor]

all_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:]
)
all_implementations = pytest.mark.parametrize("implementation", ["torch", "reference"])
both_strides = pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])


def random_inputs(*shapes: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Standard normal float64 tensors of the given shapes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def assert_as_accurate(
    op: Op, baseline: Op, inputs: Sequence[Tensor], dtype: torch.dtype, *, strided: bool = False
) -> None:
    """Apply the rule to the output and the gradient of every input.

    `inputs` are rounded to `dtype` first, so that no error of theirs counts; `strided` hands the op
    (not the baseline) non-contiguous views of them.
    """
    rounded = [tensor.to(dtype) for tensor in inputs]
    with torch.no_grad():
        shape = baseline(*(tensor.double() for tensor in rounded)).shape
    grad = random_inputs(shape, seed=99)[0].to(dtype)
    gold = _run(baseline, [tensor.double() for tensor in rounded], grad)
    plain = _run(baseline, rounded, grad)
    ours = _run(op, [_spread(tensor) if strided else tensor for tensor in rounded], grad)
    names = ["output", *(f"gradient of input {index}" for index in range(len(inputs)))]
    for name, gold_tensor, plain_tensor, our_tensor in zip(names, gold, plain, ours, strict=True):
        if name != "output":
            assert our_tensor.dtype == dtype, f"{name} is {our_tensor.dtype}"
        assert our_tensor.shape == gold_tensor.shape, name
        assert_close_as_baseline(name, our_tensor, plain_tensor, gold_tensor, dtype)


def assert_close_as_baseline(
    name: str, ours: Tensor, plain: Tensor, gold: Tensor, dtype: torch.dtype
) -> None:
    """Apply the rule to one tensor."""
    if gold.numel() == 0:
        return
    our_error = (ours.double() - gold).abs().max().item()
    plain_error = (plain.double() - gold).abs().max().item()
    floor = 0.5 * torch.finfo(dtype).eps * gold.abs().max().item()
    message = f"{name}: error {our_error:.3g}, baseline {plain_error:.3g}, floor {floor:.3g}"
    assert our_error <= 2 * plain_error + floor, message


def assert_equal_in_float64(op: Op, formula: Op, inputs: Sequence[Tensor]) -> None:
    """Output and gradients of float64 inputs agree to 1e-12: for shapes too small for the rule.

    With a handful of elements the largest error of the baseline is a matter of luck.
    """
    shape = formula(*inputs).shape
    grad = random_inputs(shape, seed=99)[0]
    for ours, expected in zip(_run(op, inputs, grad), _run(formula, inputs, grad), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def _run(op: Op, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Return the output and the gradients of all inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = op(*leaves)
    gradients = torch.autograd.grad(output, leaves, grad.to(output.dtype))
    return [output.detach(), *gradients]


def _spread(tensor: Tensor) -> Tensor:
    """The same values with a gap after every element, and one in front."""
    wide = torch.full((*tensor.shape, 2), 7.0, dtype=tensor.dtype)
    wide[..., 1] = tensor
    return wide[..., 1]
