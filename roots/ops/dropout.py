"""Dropout whose mask is a pure function of (key of the row, site, token, element).

    y = x * keep / (1 - rate)        keep[b, t, h] = bits(key[b], site, t, h) >= rate * 2^32

No generator state exists: the mask is equal on every layout, under recompute and after a resume,
and a rank that holds some rows or some tokens of a batch draws exactly the mask of its part.

Where the bits come from. A 64-bit key per token is drawn by roots.seeding from the row key, the
site and the index of the token. Its two halves k1, k2 key a 32-bit mix of the element index h,
    x = k1 + h * 0x9E3779B9;  x ^= x >> 16;  x = x * 0x7FEB352D + k2;  x ^= x >> 15;
    x *= 0x846CA68B           bits = x
(constants: C. Wellons, "Prospecting for Hash Functions", 2018; its last xor-shift moves no high
bit, and a comparison with a threshold reads high bits first). On one CPU core the mask of 786,432
elements takes 1.1 ms so, 16 ms with 64-bit numbers throughout; torch's dropout of as many 5 ms.

ROOTS' kernels compute the mask again in backward. In plain torch, where the mix costs ten passes,
it is kept as one byte an element: half of what a 16-bit activation takes.

Legend: B rows, T tokens, H elements of a token, R tokens of all rows.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from roots.errors import RootsError, problem
from roots.ops.dispatch import AUTO, Implementation, always_supported, request_for, select
from roots.ops.library.constant import constant_in_graphs
from roots.ops.native import Kernel, native
from roots.seeding import derive_key, random_bits

_GAMMA = 0x9E3779B9
_MIX_1 = 0x7FEB352D
_MIX_2 = 0x846CA68B
# One block of 32-bit states and its scratch stay in the second-level cache of a core.
_CPU_BLOCK_ELEMENTS = 1 << 17


def dropout(
    x_BTH: Tensor,
    rate: float,
    keys_B: Tensor | None,
    site: str,
    *,
    positions_T: Tensor | None = None,
    implementation: str = AUTO,
) -> Tensor:
    """Drop elements of x_BTH with probability `rate`, scale the others by 1 / (1 - rate).

    keys_B: int64, one key a row; `site` names the place in the model ("layers.3.mlp").
    `positions_T` (int64) are the positions in the row of the tokens of x_BTH, for a rank that holds
    some of the sequence; None: 0, 1, ... Rate 0 is the identity and needs no keys. Raises
    RootsError for a rate outside [0, 1).
    """
    if not dropout_wanted(rate, keys_B):
        return x_BTH
    request = request_for(x_BTH)
    run = select("dropout", IMPLEMENTATIONS, request, implementation).run
    result: Tensor = run(x_BTH, rate, keys_B, site, positions_T)
    return result


def dropout_wanted(rate: float, keys_B: Tensor | None) -> bool:
    """Whether anything is dropped; raises RootsError for a bad rate or missing keys."""
    if not 0.0 <= rate < 1.0:
        rule = "must be at least 0 and below 1"
        raise RootsError(problem("dropout rate", rate, rule, "use 0 for none"))
    if rate > 0.0 and keys_B is None:
        rule = "needs a key for every row of the batch"
        raise RootsError(
            problem("dropout rate", rate, rule, "pass keys_B, or rate 0 in evaluation")
        )
    return rate > 0.0


def keep_scale(rate: float) -> float:
    """What the kept elements are multiplied by, so that the mean stays."""
    return 1.0 / (1.0 - rate)


def row_keys(keys_B: Tensor, site: str) -> Tensor:
    """Return the int64 key of every row at a site, [B]."""
    return keys_B ^ _site_key(site)


def token_keys(
    keys_B: Tensor, site: str, num_tokens: int, positions_T: Tensor | None = None
) -> Tensor:
    """Return the int64 key of every token, [B, T]; positions None: the first ones of the row."""
    index_T = positions_T
    if index_T is None:
        index_T = torch.arange(num_tokens, device=keys_B.device)
    return random_bits(row_keys(keys_B, site)[:, None], index_T)


def keep_mask(keys: Tensor, size: int, rate: float) -> Tensor:
    """Return the boolean mask of what is kept, [*keys.shape, size], from int64 keys."""
    keys_R2 = keys.reshape(-1, 1).view(torch.int32)
    num_rows = keys_R2.shape[0]
    mask_RH = torch.empty(num_rows, size, dtype=torch.bool, device=keys.device)
    block = max(1, _CPU_BLOCK_ELEMENTS // max(size, 1)) if keys.device.type == "cpu" else num_rows
    index_H = torch.arange(size, dtype=torch.int32, device=keys.device) * _signed(_GAMMA)
    state_RH = torch.empty(min(block, num_rows), size, dtype=torch.int32, device=keys.device)
    scratch_RH = torch.empty_like(state_RH)
    for start in range(0, num_rows, max(block, 1)):
        part_R2 = keys_R2[start : start + block]
        rows = part_R2.shape[0]
        _mix(part_R2, index_H, state_RH[:rows], scratch_RH[:rows])
        torch.ge(state_RH[:rows], _threshold(rate), out=mask_RH[start : start + rows])
    return mask_RH.view(*keys.shape, size)


def _mix(keys_R2: Tensor, index_H: Tensor, state_RH: Tensor, scratch_RH: Tensor) -> None:
    """Fill state_RH with 32 random bits an element, in place throughout."""
    torch.add(keys_R2[:, :1], index_H, out=state_RH)
    torch.bitwise_right_shift(state_RH, 16, out=scratch_RH)
    # torch shifts signed numbers arithmetically; the masks make the shifts logical.
    state_RH.bitwise_xor_(scratch_RH.bitwise_and_(0xFFFF))
    torch.add(keys_R2[:, 1:], state_RH, alpha=_MIX_1, out=state_RH)
    torch.bitwise_right_shift(state_RH, 15, out=scratch_RH)
    state_RH.bitwise_xor_(scratch_RH.bitwise_and_(0x1FFFF)).mul_(_signed(_MIX_2))


def keep_mask_reference(keys: Tensor, size: int, rate: float) -> Tensor:
    """The same mask as keep_mask, written in 64-bit arithmetic modulo 2^32."""
    modulus = (1 << 32) - 1
    low, high = (keys & modulus)[..., None], ((keys >> 32) & modulus)[..., None]
    x = (low + torch.arange(size, device=keys.device) * _GAMMA) & modulus
    x = x ^ (x >> 16)
    x = (x * _MIX_1 + high) & modulus
    x = x ^ (x >> 15)
    x = (x * _MIX_2) & modulus
    return (x ^ (1 << 31)) >= _threshold(rate) + (1 << 31)


def dropout_reference(
    x_BTH: Tensor, rate: float, keys_B: Tensor, site: str, positions_T: Tensor | None = None
) -> Tensor:
    """Plain torch: y = x * keep / (1 - rate), multiplied in at least float32."""
    keys_BT = token_keys(keys_B, site, x_BTH.shape[1], positions_T)
    keep_BTH = keep_mask_reference(keys_BT, x_BTH.shape[2], rate)
    wide = torch.promote_types(x_BTH.dtype, torch.float32)
    return (x_BTH.to(wide) * keep_BTH * keep_scale(rate)).to(x_BTH.dtype)


class _MaskedScale(torch.autograd.Function):
    """y = x * keep * scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return (x * keep).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return _MaskedScale.apply(grads[0], keep, ctx.scale), None, None


def _dropout_torch(
    x_BTH: Tensor, rate: float, keys_B: Tensor, site: str, positions_T: Tensor | None
) -> Tensor:
    keep_BTH = keep_mask(
        token_keys(keys_B, site, x_BTH.shape[1], positions_T), x_BTH.shape[2], rate
    )
    result: Tensor = _MaskedScale.apply(x_BTH, keep_BTH, keep_scale(rate))
    return result


def _dropout_kernel(
    ops: Any, x_BTH: Tensor, rate: float, keys_B: Tensor, site: str, positions_T: Tensor | None
) -> Tensor:
    """The kernel of bias_dropout_add without bias and residual."""
    keys_BT = token_keys(keys_B, site, x_BTH.shape[1], positions_T)
    result: Tensor = ops.bias_dropout_add_forward(x_BTH, None, None, keys_BT, rate)
    return result


def _forward_fake(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, token_keys: Tensor | None, rate: float
) -> Tensor:
    return x.new_empty(x.shape)


def _backward_fake(
    dy: Tensor, token_keys: Tensor | None, rate: float, has_bias: bool
) -> tuple[Tensor, Tensor]:
    dx = dy.new_empty(0 if token_keys is None else dy.shape)
    return dx, dy.new_empty(dy.shape[-1] if has_bias else 0, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, bias, residual, keys_BT, ctx.rate = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.has_residual = residual is not None
    ctx.save_for_backward(keys_BT)


def _backward(ops: Any, ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (keys_BT,) = ctx.saved_tensors
    has_bias = ctx.bias_dtype is not None
    dx, dbias = ops.bias_dropout_add_backward(dy, keys_BT, ctx.rate, has_bias)
    return (
        dy if keys_BT is None else dx,
        dbias.to(ctx.bias_dtype) if has_bias else None,
        dy if ctx.has_residual else None,
        None,
        None,
    )


def _threshold(rate: float) -> int:
    """The signed 32-bit number below which a draw is dropped."""
    return min(round(rate * 2.0**32), 2**32 - 1) - (1 << 31)


def _signed(bits: int) -> int:
    """Reinterpret an unsigned 32-bit constant as int32."""
    return bits - (1 << 32) if bits >= 1 << 31 else bits


@constant_in_graphs
def _site_key(site: str) -> int:
    """The 64-bit key of a site; a constant to torch.compile, which cannot trace a hash of text."""
    return _cached_site_key(site)


@functools.lru_cache(maxsize=4096)
def _cached_site_key(site: str) -> int:
    return derive_key("dropout site", site)


KERNELS = (
    Kernel("bias_dropout_add_forward", _forward_fake, _setup_context, _backward),
    Kernel("bias_dropout_add_backward", _backward_fake),
)

IMPLEMENTATIONS = (
    *native(KERNELS, _dropout_kernel),
    Implementation("torch", _dropout_torch, always_supported),
    Implementation("reference", dropout_reference, always_supported),
)
