"""The product of a few rows with a weight, at the speed at which a CPU reads the weight.

    y = x weight^T * scale + bias               sums in fp32, y in the dtype of x

What generation spends its time on: with one token of each of a few texts every weight is read once
for a handful of multiply-adds. For inference alone: there is no gradient. The weight is fp32, bf16,
or int8 with one fp32 factor a row (`quantise_rows`), which is a quarter of the bytes of fp32.

What a row gives depends neither on the rows beside it nor on threads, as long as there are at most
MOST_ROWS of them.

Legend: M rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from roots.errors import RootsError, problem
from roots.ops.dispatch import (
    AUTO,
    Implementation,
    Request,
    accumulation_dtype,
    always_supported,
    dtype_name,
    request_for,
    select,
)
from roots.ops.native import Kernel, native_on_cpu

# Beyond them a product is bound by arithmetic, which torch's has more of at once.
MOST_ROWS = 16
_LARGEST_INT8 = 127


def linear_few_rows(
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None = None,
    scale_O: Tensor | None = None,
    *,
    implementation: str = AUTO,
) -> Tensor:
    """x [..., I] -> y [..., O] in the dtype of x, without gradient.

    weight_OI: in the dtype of x, or bf16, or int8 with scale_O (fp32). bias_O: in the dtype of x.

    Raises RootsError for shapes and dtypes that do not fit, and where a gradient is wanted.
    """
    _validate(x, weight_OI, bias_O, scale_O)
    x_MI = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    features = [] if weight_OI.dtype == x.dtype else [f"{dtype_name(weight_OI.dtype)}_weight"]
    if x_MI.shape[0] > MOST_ROWS:
        features.append("many_rows")
    request = request_for(x, *features)
    run = select("linear_few_rows", IMPLEMENTATIONS, request, implementation).run
    y_MO: Tensor = run(x_MI, weight_OI, bias_O, scale_O)
    return y_MO if x.dim() == 2 else y_MO.view(*x.shape[:-1], -1)


def linear_few_rows_reference(
    x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, scale_O: Tensor | None
) -> Tensor:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    wide = accumulation_dtype(x_MI.dtype)
    y_MO = x_MI.to(wide) @ weight_OI.to(wide).T
    if scale_O is not None:
        y_MO = y_MO * scale_O
    if bias_O is not None:
        y_MO = y_MO + bias_O
    return y_MO.to(x_MI.dtype)


def quantise_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest int8 of every weight and the factor of its row, fp32 [O].

    weight ~ int8 * factor, symmetric: the largest magnitude of a row is 127 of its factors, so that
    no weight is off by more than half a factor, 1/254 of that magnitude (and rounding in fp32). A
    row of zeros has factor 0.

    Raises RootsError if a weight is not finite.
    """
    wide_OI = weight_OI.float()
    largest_O = wide_OI.abs().amax(1)
    if not bool(largest_O.isfinite().all()):
        row = int((~largest_O.isfinite()).int().argmax())
        rule, fix = "holds an infinity or NaN", "quantise weights that are finite"
        raise RootsError(problem(f"row {row} of the weight", largest_O[row].item(), rule, fix))
    scale_O = largest_O / _LARGEST_INT8
    # Nothing is divided by the factor of a row of zeros.
    steps_OI = wide_OI / scale_O.masked_fill(scale_O == 0, 1.0)[:, None]
    return steps_OI.round_().clamp_(-_LARGEST_INT8, _LARGEST_INT8).to(torch.int8), scale_O


def _linear_torch(
    x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, scale_O: Tensor | None
) -> Tensor:
    """torch's product, with a copy of a weight of another dtype."""
    if scale_O is None:
        return F.linear(x_MI, weight_OI.to(x_MI.dtype), bias_O)
    y_MO = F.linear(x_MI, weight_OI.to(x_MI.dtype)) * scale_O
    return (y_MO if bias_O is None else y_MO + bias_O).to(x_MI.dtype)


def _validate(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, scale_O: Tensor | None) -> None:
    if torch.is_grad_enabled():
        _refuse_gradients(x, weight_OI, bias_O, scale_O)
    if weight_OI.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight_OI.shape[1]:
        rule = f"must be [outputs, inputs] with the last dim of x, {list(x.shape)}"
        raise _wrong("weight", list(weight_OI.shape), rule, "pass a weight that fits x")
    kind = weight_OI.dtype
    if kind not in (x.dtype, torch.bfloat16, torch.int8):
        rule = f"must be {dtype_name(x.dtype)} (as x), bfloat16 or int8"
        raise _wrong("dtype of weight", dtype_name(kind), rule, "convert it")
    if (kind == torch.int8) != (scale_O is not None):
        rule = "must be given with an int8 weight, and only with it"
        given = "none" if scale_O is None else list(scale_O.shape)
        raise _wrong("scale", given, rule, "make both with quantise_rows")
    for name, each, dtype in (("bias", bias_O, x.dtype), ("scale", scale_O, torch.float32)):
        if each is None:
            continue
        if each.shape != weight_OI.shape[:1]:
            rule = f"must have one number for each row of weight, {list(weight_OI.shape)}"
            raise _wrong(name, list(each.shape), rule, "pass one number an output")
        if each.dtype != dtype:
            rule = f"must be {dtype_name(dtype)}"
            raise _wrong(f"dtype of {name}", dtype_name(each.dtype), rule, "convert it")


def _refuse_gradients(*operands: Tensor | None) -> None:
    if any(each is not None and each.requires_grad for each in operands):
        rule = "has no gradient"
        fix = "call it under torch.no_grad(), or torch.nn.functional.linear for training"
        raise _wrong("requires_grad", "True", rule, fix)


def _wrong(name: str, value: object, rule: str, fix: str) -> RootsError:
    return RootsError(problem(f"{name} of linear_few_rows", value, rule, fix))


def _unsupported(request: Request) -> list[str]:
    found = []
    if request.dtype == torch.float16:
        found.append("the kernel is for float32 and bfloat16, not for float16.")
    if "many_rows" in request.features:
        found.append(f"the kernel is for at most {MOST_ROWS} rows; torch's is faster for more.")
    return found


def _native(
    ops: Any, x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, scale_O: Tensor | None
) -> Tensor:
    y_MO: Tensor = ops.linear_few_rows(x_MI, weight_OI, bias_O, scale_O)
    return y_MO


def _fake(x_MI: Tensor, weight_OI: Tensor, *_: Any) -> Tensor:
    return x_MI.new_empty(x_MI.shape[0], weight_OI.shape[0])


KERNELS = (Kernel("linear_few_rows", _fake),)
IMPLEMENTATIONS = (
    native_on_cpu(KERNELS, _native, _unsupported),
    Implementation("torch", _linear_torch, always_supported),
    Implementation("reference", linear_few_rows_reference, always_supported),
)
