"""The rule by which an operator is judged: twice the error of an honest baseline, and a tiny floor.

Gold is the formula in float64 on the very inputs that the op gets. The baseline is the same formula
in plain torch operations of the op's dtype. For the output and every gradient,
    max|op - gold| <= 2 max|baseline - gold| + floor
where the floor is half a unit in the last place of the largest gold value: what rounding the exact
result to the dtype costs. No tolerance is chosen by hand.

The marks below say what a test runs over; tests/ops/conftest.py turns them into parameters. They
look at IMPLEMENTATIONS of the op after which the test file is named (of roots.ops.swiglu for
test_swiglu.py), or at the tuple that the mark is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

# One tensor, or several.
Op = Callable[..., Any]

all_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:]
)
# Every implementation of the op on every device that it is for and that is here, as the arguments
# `implementation` and, where the test takes it, `device` (else on a CPU alone). The simulator is
# left out where the argument `shape` is large.
all_implementations = pytest.mark.all_implementations
# Those that know float64 and run on a CPU: all but ROOTS' own kernels.
plain_implementations = pytest.mark.plain_implementations
# The kernels themselves: their `namespace` in torch.ops, registered, and the `device` of operands.
all_kernels = pytest.mark.all_kernels
both_strides = pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])


def random_inputs(*shapes: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Standard normal float64 tensors of the given shapes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def assert_as_accurate(
    op: Op,
    baseline: Op,
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    *,
    strided: bool = False,
    device: str = "cpu",
) -> None:
    """Apply the rule to every output and the gradient of every input.

    `inputs` are rounded to `dtype` first, so that no error of theirs counts; `strided` hands the op
    (not the baseline) non-contiguous views of them. The largest errors are taken over several
    arrangements of the inputs, the more the smaller they are: over few numbers they are luck.
    """
    turns = min(20, max(3, 2000 // max(inputs[0].numel(), 1)))
    draws: dict[str, list[tuple[float, float, float]]] = {}
    grads = _gradients_of_outputs(baseline, [tensor.to(device) for tensor in inputs], dtype)
    for turn in range(turns):
        arranged = [tensor.to(device) for tensor in _arrange(inputs, turn)]
        for name, errors in _errors(op, baseline, arranged, grads, dtype, strided).items():
            draws.setdefault(name, []).append(errors)
    for name, errors_of_turns in draws.items():
        ours, plain, floor = (max(values) for values in zip(*errors_of_turns, strict=True))
        message = f"{name}: error {ours:.3g}, baseline {plain:.3g}, floor {floor:.3g}"
        assert ours <= 2 * plain + floor, message


def assert_close_as_baseline(
    name: str, ours: Tensor, plain: Tensor, gold: Tensor, dtype: torch.dtype
) -> None:
    """Apply the rule to one tensor."""
    our_error, plain_error, floor = _error(ours, plain, gold, dtype)
    message = f"{name}: error {our_error:.3g}, baseline {plain_error:.3g}, floor {floor:.3g}"
    assert our_error <= 2 * plain_error + floor, message


def _gradients_of_outputs(
    baseline: Op, inputs: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Random gradients of what the formula returns, the same for all arrangements."""
    with torch.no_grad():
        outputs = _as_tuple(baseline(*inputs))
    return [
        random_inputs(output.shape, seed=99 - index)[0].to(output.device, dtype)
        for index, output in enumerate(outputs)
    ]


def _errors(
    op: Op,
    baseline: Op,
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    dtype: torch.dtype,
    strided: bool,
) -> dict[str, tuple[float, float, float]]:
    """(error, error of the baseline, floor) of every output and every gradient."""
    rounded = [tensor.to(dtype) for tensor in inputs]
    wide = [tensor.double() for tensor in rounded]
    gold = _run(baseline, wide, grads)
    plain = _run(baseline, rounded, grads)
    ours = _run(op, [_spread(tensor) if strided else tensor for tensor in rounded], grads)
    assert [tensor.shape for tensor in ours.values()] == [tensor.shape for tensor in gold.values()]
    for name, tensor in ours.items():
        assert "gradient" not in name or tensor.dtype == dtype, name
    return {name: _error(ours[name], plain[name], gold[name], dtype) for name in gold}


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
    with torch.no_grad():
        shapes = [output.shape for output in _as_tuple(formula(*inputs))]
    grads = [random_inputs(shape, seed=99 - index)[0] for index, shape in enumerate(shapes)]
    ours, expected = _run(op, inputs, grads), _run(formula, inputs, grads)
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-12, atol=1e-12)


def _run(op: Op, inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the outputs and the gradients of all inputs, by names for messages."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = _as_tuple(op(*leaves))
    grads = [grad.to(output.dtype) for grad, output in zip(grads, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, leaves, grads)
    named = {f"output {index}": output.detach() for index, output in enumerate(outputs)}
    return named | {f"gradient of input {index}": grad for index, grad in enumerate(gradients)}


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _spread(tensor: Tensor) -> Tensor:
    """The same values with a gap after every element, and one in front."""
    wide = torch.full((*tensor.shape, 2), 7.0, dtype=tensor.dtype, device=tensor.device)
    wide[..., 1] = tensor
    return wide[..., 1]
