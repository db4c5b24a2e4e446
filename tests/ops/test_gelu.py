"""gelu with bias against the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.errors import RootsError
from roots.ops import gelu
from roots.ops.gelu import gelu_reference
from tests.ops.accuracy import (
    all_dtypes,
    all_implementations,
    assert_as_accurate,
    assert_equal_in_float64,
    both_strides,
    random_inputs,
)

FORMS = ["none", "tanh"]


def formula(approximate: str, x: Tensor, bias_F: Tensor | None) -> Tensor:
    z = x if bias_F is None else x + bias_F
    if approximate == "none":
        return 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
    return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)))


@all_dtypes
@all_implementations
@both_strides
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("shape", [(5, 123), (1, 65), (2, 3, 384)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
def test_gelu_is_as_accurate_as_the_baseline(
    dtype: torch.dtype,
    implementation: str,
    strided: bool,
    approximate: str,
    shape: tuple[int, ...],
    with_bias: bool,
) -> None:
    # The whole of the curve, up to where it is linear or zero.
    inputs = [3.0 * x for x in random_inputs(shape, shape[-1:])[: 1 + with_bias]]

    def op(x: Tensor, bias_F: Tensor | None = None) -> Tensor:
        return gelu(x, bias_F, approximate, implementation=implementation)

    def baseline(x: Tensor, bias_F: Tensor | None = None) -> Tensor:
        return formula(approximate, x, bias_F)

    assert_as_accurate(op, baseline, inputs, dtype, strided=strided)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(0, 9), size=st.integers(1, 70), form=st.sampled_from(FORMS))
def test_gelu_of_any_shape(rows: int, size: int, form: str) -> None:
    inputs = random_inputs((rows, size), (size,))
    assert_equal_in_float64(
        lambda x, bias_F: gelu(x, bias_F, form),
        lambda x, bias_F: formula(form, x, bias_F),
        inputs,
    )


@pytest.mark.parametrize("approximate", FORMS)
def test_gradients_of_the_reference(approximate: str) -> None:
    inputs = [x.requires_grad_() for x in random_inputs((3, 7), (7,))]
    assert torch.autograd.gradcheck(lambda x, b: gelu_reference(x, b, approximate), inputs)


def test_unknown_form_is_refused() -> None:
    with pytest.raises(RootsError) as caught:
        gelu(torch.zeros(2, 2), approximate="quick")
    assert str(caught.value) == "approximate='quick': is no form of gelu; use none or tanh"
