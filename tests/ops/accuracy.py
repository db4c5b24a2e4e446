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
    (not the baseline) non-contiguous views of them. The largest errors are taken over several
    arrangements of the inputs, the more the smaller they are: over few numbers they are luck.
    """
    turns = min(20, max(3, 2000 // max(inputs[0].numel(), 1)))
    draws = [_errors(op, baseline, _arrange(inputs, turn), dtype, strided) for turn in range(turns)]
    for index, draws_of_tensor in enumerate(zip(*draws, strict=True)):
        ours, plain, floor = (max(values) for values in zip(*draws_of_tensor, strict=True))
        name = "output" if index == 0 else f"gradient of input {index - 1}"
        message = f"{name}: error {ours:.3g}, baseline {plain:.3g}, floor {floor:.3g}"
        assert ours <= 2 * plain + floor, message


def assert_close_as_baseline(
    name: str, ours: Tensor, plain: Tensor, gold: Tensor, dtype: torch.dtype
) -> None:
    """Apply the rule to one tensor."""
    our_error, plain_error, floor = _error(ours, plain, gold, dtype)
    message = f"{name}: error {our_error:.3g}, baseline {plain_error:.3g}, floor {floor:.3g}"
    assert our_error <= 2 * plain_error + floor, message


def _errors(
    op: Op, baseline: Op, inputs: Sequence[Tensor], dtype: torch.dtype, strided: bool
) -> list[tuple[float, float, float]]:
    """(error, error of the baseline, floor) of the output and of every gradient."""
    rounded = [tensor.to(dtype) for tensor in inputs]
    with torch.no_grad():
        shape = baseline(*(tensor.double() for tensor in rounded)).shape
    grad = random_inputs(shape, seed=99)[0].to(dtype)
    gold = _run(baseline, [tensor.double() for tensor in rounded], grad)
    plain = _run(baseline, rounded, grad)
    ours = _run(op, [_spread(tensor) if strided else tensor for tensor in rounded], grad)
    assert all(gradient.dtype == dtype for gradient in ours[1:])
    assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in gold]
    return [_error(*tensors, dtype) for tensors in zip(ours, plain, gold, strict=True)]


def _error(
    ours: Tensor, plain: Tensor, gold: Tensor, dtype: torch.dtype
) -> tuple[float, float, float]:
    if gold.numel() == 0:
        return 0.0, 0.0, 0.0
    assert ours.isfinite().all()
    our_error = (ours.double() - gold).abs().max().item()
    plain_error = (plain.double() - gold).abs().max().item()
    return our_error, plain_error, 0.5 * torch.finfo(dtype).eps * gold.abs().max().item()


def _arrange(inputs: Sequence[Tensor], turn: int) -> list[Tensor]:
    """The same numbers at other places, slightly smaller, so that all round differently."""
    return [0.99**turn * tensor.flatten().roll(7 * turn).view(tensor.shape) for tensor in inputs]


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
