"""Rotary position embedding (Su et al., "RoFormer", 2021).

    angle[t, r] = position[t] * base^(-2r / rotary_size)        r < R = rotary_size / 2
    y[a] = x[a] * cos[r] - x[b] * sin[r]
    y[b] = x[b] * cos[r] + x[a] * sin[r]                the other dims of the head are kept

with (a, b) = (r, r + R), half-split as in GPT-NeoX and Llama, or (2r, 2r + 1), interleaved as in
RoFormer and GPT-J. The gradient is the rotation by the negative angles.

Legend: B rows, T tokens, N heads, D head size, R angles of a token (half of the rotated dims), P
rows of a table.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from roots.errors import RootsError, problem
from roots.ops.dispatch import (
    AUTO,
    Implementation,
    accumulation_dtype,
    always_supported,
    request_for,
    select,
)
from roots.ops.native import Kernel, native


class Turn(NamedTuple):
    """What is rotated by, as the implementations get it: the arguments of `rotary` but for x."""

    cos: Tensor
    sin: Tensor
    positions: Tensor | None
    interleaved: bool
    inverse: bool = False


def rotary_table(
    positions: Tensor, rotary_size: int, base: float = 10000.0
) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) of the angles of int64 `positions` [T] or [B, T]: fp32, [..., R].

    Raises RootsError for an odd rotary_size.
    """
    if rotary_size % 2 or rotary_size < 2:
        rule = "must be even and at least 2, since dims are rotated in pairs"
        raise RootsError(problem("rotary_size", rotary_size, rule, "change model.rotary_fraction"))
    steps_R = torch.arange(0, rotary_size, 2, dtype=torch.float64, device=positions.device)
    return table_of_frequencies(positions, base ** -(steps_R / rotary_size))


def table_of_frequencies(
    positions: Tensor, frequencies_R: Tensor, amplitude: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) of positions times float64 frequencies, both times `amplitude`; fp32.

    The angles are computed in float64: fp32 has lost two digits at position 100,000.
    """
    angles = positions.to(torch.float64)[..., None] * frequencies_R
    return (angles.cos() * amplitude).float(), (angles.sin() * amplitude).float()


def rotary(
    x_BTND: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    positions_BT: Tensor | None = None,
    interleaved: bool = False,
    implementation: str = AUTO,
) -> Tensor:
    """Rotate the first 2R dims of every head of x_BTND by the angles of its token.

    cos, sin: fp32 of rotary_table. Without positions they have a row for every token, [T, R] (token
    t takes row t, more rows are not read) or [B, T, R]. With positions_BT (int64) they are [P, R]
    and token (b, t) takes row positions_BT[b, t]; where that is no row of theirs, an error is
    raised, or on a GPU the token becomes NaN. x may be any view whose last dim is dense, such as
    the heads of a fused projection. Raises RootsError for tables and positions that do not fit.
    """
    _check(x_BTND, cos, sin, positions_BT)
    run = select("rotary", IMPLEMENTATIONS, request_for(x_BTND), implementation).run
    result: Tensor = run(x_BTND, Turn(cos, sin, positions_BT, interleaved), False)
    return result


def rotary_(
    x_BTND: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    positions_BT: Tensor | None = None,
    interleaved: bool = False,
    implementation: str = AUTO,
) -> Tensor:
    """`rotary` in place: return x_BTND, whose values are the rotated ones.

    Autograd allows that for every tensor that is not a leaf which requires a gradient, and not a
    part of what split or chunk returned (take a slice or narrow instead).
    """
    _check(x_BTND, cos, sin, positions_BT)
    run = select("rotary", IMPLEMENTATIONS, request_for(x_BTND), implementation).run
    result: Tensor = _InPlace.apply(x_BTND, run, cos, sin, positions_BT, interleaved)
    return result


def rotary_reference(x_BTND: Tensor, turn: Turn, in_place: bool = False) -> Tensor:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    if in_place:
        return x_BTND.copy_(rotary_reference(x_BTND, turn))
    cos, sin = _per_head(turn, x_BTND.shape[1])
    first, second = (part.to(accumulation_dtype(x_BTND.dtype)) for part in _pairs(x_BTND, turn))
    parts = (first * cos - second * sin, second * cos + first * sin)
    if turn.interleaved:
        rotated = torch.stack(parts, dim=-1).flatten(-2)
    else:
        rotated = torch.cat(parts, dim=-1)
    return torch.cat((rotated.to(x_BTND.dtype), x_BTND[..., 2 * cos.shape[-1] :]), dim=-1)


def _check(x_BTND: Tensor, cos: Tensor, sin: Tensor, positions_BT: Tensor | None) -> None:
    if 2 * cos.shape[-1] > x_BTND.shape[-1]:
        rule = f"must be at least the {2 * cos.shape[-1]} dims that the table rotates"
        raise RootsError(
            problem("head size", x_BTND.shape[-1], rule, "make a smaller rotary table")
        )
    rows_BT = tuple(x_BTND.shape[:2])
    if positions_BT is not None:
        if positions_BT.dtype != torch.int64 or tuple(positions_BT.shape) != rows_BT:
            got = f"{positions_BT.dtype} {list(positions_BT.shape)}"
            rule = f"must be int64 of shape {list(rows_BT)}, one for every token"
            raise RootsError(problem("positions", got, rule, "expand them over the rows"))
        fits = cos.dim() == 2
    elif cos.dim() == 3:
        fits = tuple(cos.shape[:2]) == rows_BT
    else:
        fits = cos.dim() == 2 and cos.shape[0] >= rows_BT[1]
    if not fits or sin.shape != cos.shape:
        got = [list(cos.shape), list(sin.shape)]
        rule = f"must both have a row for every token of x {list(x_BTND.shape)}"
        raise RootsError(
            problem("cos, sin", got, rule, "make the rotary table for these positions")
        )


def _per_head(turn: Turn, num_tokens: int) -> tuple[Tensor, Tensor]:
    """(cos, sin) that broadcast over heads: [T, 1, R] or [B, T, 1, R]."""
    cos, sin = turn.cos, turn.sin
    if turn.positions is not None:
        cos, sin = cos[turn.positions], sin[turn.positions]
    cos, sin = (table[..., :num_tokens, None, :] for table in (cos, sin))
    return cos, -sin if turn.inverse else sin


def _pairs(x_BTND: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
    """Views of the first and of the second dim of every pair, [B, T, N, R]."""
    half = turn.cos.shape[-1]
    if turn.interleaved:
        return x_BTND[..., 0 : 2 * half : 2], x_BTND[..., 1 : 2 * half : 2]
    return x_BTND[..., :half], x_BTND[..., half : 2 * half]


class _Rotary(torch.autograd.Function):
    """In plain torch, into one new tensor. Only the tables are saved."""

    @staticmethod
    def forward(ctx: Any, x_BTND: Tensor, *turn: Any) -> Tensor:
        ctx.save_for_backward(*turn[:3])
        ctx.turn = turn[3:]
        return _rotate(x_BTND, Turn(*turn))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        interleaved, inverse = ctx.turn
        turn = Turn(*ctx.saved_tensors, interleaved, not inverse)
        return _Rotary.apply(grads[0], *turn), None, None, None, None, None


def _rotate(x_BTND: Tensor, turn: Turn) -> Tensor:
    cos, sin = _per_head(turn, x_BTND.shape[1])
    wide = accumulation_dtype(x_BTND.dtype)
    first, second = (part.to(wide) for part in _pairs(x_BTND, turn))
    y_BTND = torch.empty(x_BTND.shape, dtype=x_BTND.dtype, device=x_BTND.device)
    y_first, y_second = _pairs(y_BTND, turn)
    y_first.copy_((first * cos).addcmul_(second, sin, value=-1.0))
    y_second.copy_((second * cos).addcmul_(first, sin))
    kept = 2 * cos.shape[-1]
    if kept < x_BTND.shape[-1]:
        y_BTND[..., kept:] = x_BTND[..., kept:]
    return y_BTND


def _rotary_torch(x_BTND: Tensor, turn: Turn, in_place: bool) -> Tensor:
    if in_place:
        return x_BTND.copy_(_rotate(x_BTND, turn))
    result: Tensor = _Rotary.apply(x_BTND, *turn)
    return result


class _InPlace(torch.autograd.Function):
    """`run` in place: of whatever implementation was selected."""

    @staticmethod
    def forward(ctx: Any, x_BTND: Tensor, run: Any, *turn: Any) -> Tensor:
        ctx.mark_dirty(x_BTND)
        ctx.save_for_backward(*turn[:3])
        ctx.run, ctx.interleaved = run, turn[3]
        run(x_BTND, Turn(*turn), True)
        return x_BTND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        turn = Turn(*ctx.saved_tensors, ctx.interleaved, True)
        return ctx.run(grads[0], turn, False), None, None, None, None, None


def _rotary_kernel(ops: Any, x_BTND: Tensor, turn: Turn, in_place: bool) -> Tensor:
    if in_place:
        ops.rotary_(x_BTND, *turn)
        return x_BTND
    result: Tensor = ops.rotary(x_BTND, *turn)
    return result


def _fake(x: Tensor, *turn: Any) -> Tensor:
    return x.new_empty(x.shape)


def _fake_in_place(x: Tensor, *turn: Any) -> None:
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *tables, ctx.interleaved, ctx.inverse = inputs
    ctx.save_for_backward(*tables)


def _backward(ops: Any, ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx = ops.rotary(dy, *ctx.saved_tensors, ctx.interleaved, not ctx.inverse)
    return dx, None, None, None, None, None


KERNELS = (
    Kernel("rotary", _fake, _setup_context, _backward),
    Kernel("rotary_", _fake_in_place),
)

IMPLEMENTATIONS = (
    *native(KERNELS, _rotary_kernel),
    Implementation("torch", _rotary_torch, always_supported),
    Implementation("reference", rotary_reference, always_supported),
)
