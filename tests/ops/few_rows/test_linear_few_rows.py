"""linear_few_rows against the product in float64, and int8 against its bound."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.errors import RootsError
from roots.ops import linear_few_rows, quantise_rows
from roots.ops.dispatch import Request
from roots.ops.few_rows.linear_few_rows import (
    IMPLEMENTATIONS,
    MOST_ROWS,
    linear_few_rows_reference,
)
from tests.ops.accuracy import (
    all_implementations,
    all_kernels,
    assert_close_as_baseline,
    random_inputs,
)

# Of x, and of the weight.
KINDS = {
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp32-bf16": (torch.float32, torch.bfloat16),
    "fp32-int8": (torch.float32, torch.int8),
    "bf16-int8": (torch.bfloat16, torch.int8),
}
all_kinds = pytest.mark.parametrize("kind", KINDS)


def operands(
    kind: str, rows: int, inputs: int, outputs: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """x, weight, bias and scale of a kind."""
    x_MI, weight_OI, bias_O = random_inputs(
        (rows, inputs), (outputs, inputs), (outputs,), seed=seed
    )
    dtype, weight_dtype = KINDS[kind]
    if weight_dtype == torch.int8:
        weight_OI, scale_O = quantise_rows(weight_OI)
        return x_MI.to(dtype), weight_OI, bias_O.to(dtype), scale_O
    return x_MI.to(dtype), weight_OI.to(weight_dtype), bias_O.to(dtype), None


def formula(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None) -> Tensor:
    y = F.linear(x, weight.to(x.dtype))
    return (y if scale is None else y * scale.to(x.dtype)) + bias


@all_implementations
@all_kinds
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16])
def test_is_as_accurate_as_the_baseline(implementation: str, kind: str, rows: int) -> None:
    """Over inputs that fill vectors, lines and tiles, and that do not."""
    dtype = KINDS[kind][0]
    for inputs, outputs in ((768, 50), (40, 9), (131, 33), (7, 1), (1, 5)):
        ours, plain, gold = [], [], []
        for seed in range(4):
            given_operands = operands(kind, rows, inputs, outputs, seed)
            x, weight, bias, scale = given_operands
            wide = None if scale is None else scale.double()
            gold.append(formula(x.double(), weight, bias.double(), wide))
            plain.append(formula(*given_operands))
            ours.append(linear_few_rows(*given_operands, implementation=implementation))
            assert ours[-1].dtype == dtype
        assert_close_as_baseline(
            f"{inputs} -> {outputs}", *map(torch.stack, (ours, plain, gold)), dtype
        )


@all_kinds
def test_a_row_does_not_depend_on_the_rows_beside_it(kind: str) -> None:
    for inputs in (256, 83):
        x, *others = operands(kind, MOST_ROWS, inputs, 29)
        alone = torch.cat([linear_few_rows(row, *others) for row in x.split(1)])
        for rows in range(2, MOST_ROWS + 1):
            assert torch.equal(linear_few_rows(x[:rows], *others), alone[:rows]), rows


@all_kinds
def test_threads_do_not_change_a_bit(kind: str) -> None:
    given_operands = operands(kind, 3, 2048, 131)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = linear_few_rows(*given_operands)
        torch.set_num_threads(3)
        assert torch.equal(linear_few_rows(*given_operands), expected)
    finally:
        torch.set_num_threads(before)


@all_implementations
@all_kinds
def test_strided_operands(implementation: str, kind: str) -> None:
    x, weight, bias, scale = operands(kind, 6, 80, 22)
    strided = [
        x[::2, ::2],
        weight.T.contiguous().T[:, ::2],
        bias.repeat_interleave(2)[::2],
        None if scale is None else scale.repeat_interleave(2)[::2],
    ]
    dense = [None if each is None else each.contiguous() for each in strided]
    actual = linear_few_rows(*strided, implementation=implementation)
    expected = linear_few_rows(*dense, implementation=implementation)
    torch.testing.assert_close(actual, expected)


@all_implementations
def test_leading_dims_are_kept(implementation: str) -> None:
    x, weight, bias, _ = operands("fp32", 6, 12, 7)
    flat = linear_few_rows(x, weight, bias, implementation=implementation)
    for shape in ((2, 3, 12), (1, 6, 12)):
        y = linear_few_rows(x.view(shape), weight, bias, implementation=implementation)
        assert torch.equal(y, flat.view(*shape[:-1], 7))
    vector = linear_few_rows(x[0], weight, bias, implementation=implementation)
    torch.testing.assert_close(vector, flat[0])


@all_implementations
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=str)
def test_empty_operands(implementation: str, shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    bias = torch.arange(1.0, outputs + 1)
    y = linear_few_rows(
        torch.ones(rows, inputs), torch.ones(outputs, inputs), bias, implementation=implementation
    )
    assert torch.equal(y, bias.expand(rows, -1) + inputs)


@all_implementations
@all_kinds
def test_what_is_not_finite_stays_in_its_row(implementation: str, kind: str) -> None:
    x, *others = operands(kind, 3, 77, 10)
    x[0, 3], x[2, 76] = torch.nan, torch.inf
    finite = linear_few_rows(x, *others, implementation=implementation).isfinite()
    assert finite.any(1).tolist() == [False, True, False]
    assert finite[1].all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, MOST_ROWS),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 40),
    kind=st.sampled_from(sorted(KINDS)),
)
def test_kernel_of_any_shape(rows: int, inputs: int, outputs: int, kind: str) -> None:
    given_operands = operands(kind, rows, inputs, outputs)
    expected = linear_few_rows_reference(*given_operands)
    actual = linear_few_rows(*given_operands)
    # A sum near zero of numbers near one.
    tolerance = {} if KINDS[kind][0] == torch.bfloat16 else {"rtol": 1e-5, "atol": 2e-5}
    torch.testing.assert_close(actual, expected, **tolerance)


def test_more_rows_go_to_torch() -> None:
    x, weight, bias, _ = operands("fp32", MOST_ROWS + 1, 20, 6)
    assert torch.equal(linear_few_rows(x, weight, bias), F.linear(x, weight, bias))
    with pytest.raises(RootsError) as caught:
        linear_few_rows(x, weight, bias, implementation="roots")
    assert str(caught.value) == (
        "ops.linear_few_rows='roots': cannot run here: the kernel is for at most 16 rows; torch's "
        'is faster for more; use "auto"'
    )


def test_kernel_is_for_a_cpu_and_for_what_it_knows() -> None:
    (kernel,) = (each for each in IMPLEMENTATIONS if each.name == "roots")
    assert kernel.unsupported_reasons(Request(torch.float32, "cuda")) == [
        "the kernel runs on cpu, not on cuda."
    ]
    assert kernel.unsupported_reasons(Request(torch.float16, "cpu")) == [
        "the kernel is for float32 and bfloat16, not for float16."
    ]
    x = torch.ones(2, 4, dtype=torch.float16)
    assert torch.equal(linear_few_rows(x, x), torch.full((2, 2), 4, dtype=torch.float16))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(rows=st.integers(1, 6), size=st.integers(1, 40), exponent=st.integers(-30, 30))
def test_quantised_weights_are_within_half_a_step(rows: int, size: int, exponent: int) -> None:
    (weight_OI,) = random_inputs((rows, size), seed=size)
    weight_OI = (weight_OI * 2.0**exponent).float()
    weight_OI[0] = 0.0
    int8_OI, scale_O = quantise_rows(weight_OI)
    assert (int8_OI.dtype, scale_O.dtype, scale_O.shape) == (torch.int8, torch.float32, (rows,))
    largest_O = weight_OI.abs().amax(1)
    torch.testing.assert_close(scale_O, largest_O / 127)
    error_OI = (int8_OI.double() * scale_O.double()[:, None] - weight_OI.double()).abs()
    # 127 steps and their factor are each rounded to 24 bits.
    assert (error_OI <= largest_O.double()[:, None] * (1 / 254 + 2.0**-22)).all()
    assert int8_OI.abs().amax(1).tolist() == [0] + [127] * (rows - 1)


def test_quantised_weights_stay_what_they_are() -> None:
    weight_OI = torch.arange(-127, 128, dtype=torch.int8).repeat(3, 1)
    scale_O = torch.tensor([1.0, 0.25, 3.0])
    int8_OI, factors_O = quantise_rows(weight_OI * scale_O[:, None])
    assert torch.equal(int8_OI, weight_OI)
    assert torch.equal(factors_O, scale_O)
    assert quantise_rows((weight_OI * scale_O[:, None]).bfloat16())[0].dtype == torch.int8


def test_weights_that_are_not_finite_are_not_quantised() -> None:
    weight_OI = torch.ones(3, 4)
    weight_OI[1, 2] = torch.inf
    with pytest.raises(RootsError) as caught:
        quantise_rows(weight_OI)
    assert str(caught.value) == (
        "row 1 of the weight=inf: holds an infinity or NaN; quantise weights that are finite"
    )


@all_kernels
@all_kinds
def test_opcheck(namespace: str, device: str, kind: str) -> None:
    op = getattr(torch.ops, namespace).linear_few_rows
    for bias in (True, False):
        x, weight, bias_O, scale = operands(kind, 3, 20, 9)
        torch.library.opcheck(op, (x, weight, bias_O if bias else None, scale))


def test_under_compile() -> None:
    x, weight, bias, _ = operands("fp32", 2, 20, 9)
    compiled = torch.compile(
        lambda x: linear_few_rows(x, weight, bias) + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), linear_few_rows(x, weight, bias) + 1)


def test_gradients_are_refused() -> None:
    x, weight, bias, _ = operands("fp32", 2, 20, 9)
    weight.requires_grad_()
    with pytest.raises(RootsError) as caught:
        linear_few_rows(x, weight, bias)
    assert str(caught.value) == (
        "requires_grad of linear_few_rows='True': has no gradient; "
        "call it under torch.no_grad(), or torch.nn.functional.linear for training"
    )
    with torch.no_grad():
        assert not linear_few_rows(x, weight, bias).requires_grad


def test_wrong_operands_are_refused() -> None:
    x, weight, half = torch.zeros(2, 6), torch.zeros(5, 6), torch.zeros(5, 6).bfloat16()
    int8, scale = quantise_rows(weight)
    cases: list[tuple[list[Tensor | None], str]] = [
        ([x, weight[:, :4]], "weight of linear_few_rows=[5, 4]: must be [outputs, inputs] with"),
        ([x, weight.double()], "dtype of weight of linear_few_rows='float64': must be float32"),
        ([half, weight], "dtype of weight of linear_few_rows='float32': must be bfloat16 (as x)"),
        ([x, int8], "scale of linear_few_rows='none': must be given with an int8 weight"),
        ([x, weight, None, scale], "scale of linear_few_rows=[5]: must be given with an int8"),
        ([x, weight, scale[:3]], "bias of linear_few_rows=[3]: must have one number for each row"),
        ([x, int8, None, scale[:3]], "scale of linear_few_rows=[3]: must have one number"),
        ([x, weight, scale.double()], "dtype of bias of linear_few_rows='float64': must be float"),
        ([x, int8, None, scale.half()], "dtype of scale of linear_few_rows='float16': must be fl"),
    ]
    for given_operands, message in cases:
        with pytest.raises(RootsError) as caught:
            linear_few_rows(*given_operands)  # type: ignore[arg-type]
        assert str(caught.value).startswith(message)


@all_kernels
def test_kernel_messages(namespace: str, device: str) -> None:
    op = getattr(torch.ops, namespace).linear_few_rows
    x, weight, scale = torch.zeros(2, 6), torch.zeros(5, 6), torch.zeros(5)
    cases = [
        ((x.half(), weight, None, None), "x must be float32 or bfloat16."),
        ((x, weight.half(), None, None), "weight must be float32, bfloat16 or int8."),
        ((x[0], weight, None, None), "x [6] and weight [5, 6] must be [rows, inputs] and"),
        ((x.bfloat16(), weight, None, None), "a float32 weight needs float32 x."),
        ((x, weight, None, scale), "scale must be given with an int8 weight, and only with it."),
        ((x, weight, scale[:2], None), "bias [2] must have one number for each row of weight"),
        ((x, weight, scale.half(), None), "bias and x must have the same dtype."),
        ((x, weight.char(), None, scale[:2]), "scale [2] must have one number for each row of"),
        ((x, weight.char(), None, scale.half()), "scale must be float32."),
    ]
    for given_operands, message in cases:
        with pytest.raises(RuntimeError) as caught:
            op(*given_operands)
        assert message in str(caught.value)
