"""Gradients of attention to one block of keys, given output and log-sum-exp over all blocks.

With p[t, s] = exp(scale * q[t] . k[s] - lse[t]), which is the weight in the whole softmax,
    dv[s] = sum_t p[t, s] do[t]        delta[t] = sum_d do[t, d] o[t, d]
    ds[t, s] = p[t, s] (do[t] . v[s] - delta[t])
    dq[t] = scale * sum_s ds[t, s] k[s]        dk[s] = scale * sum_t ds[t, s] q[t]
so the gradients of the blocks of a ring (roots.parallel.ring) add up to those of the whole. It is
what attention's backward computes anyway: the kernel is the same, told o and lse of the whole.

Legend: B rows, T queries, S keys of the block, N heads, K key heads, D head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from roots.ops.attention import KERNELS, cuda_reasons
from roots.ops.attention_ranges import KeyRanges
from roots.ops.dispatch import (
    AUTO,
    Implementation,
    accumulation_dtype,
    always_supported,
    request_for,
    select,
)
from roots.ops.native import native

Gradients = tuple[Tensor, Tensor, Tensor]


def attention_block(
    do_BTND: Tensor,
    block: tuple[Tensor, Tensor, Tensor],
    whole: tuple[Tensor, Tensor],
    key_ranges: KeyRanges,
    *,
    implementation: str = AUTO,
) -> Gradients:
    """(dq_BTND, dk_BSKD, dv_BSKD) of one block, outside autograd.

    block:      q_BTND, k_BSKD, v_BSKD
    whole:      o_BTND, lse_BNT (float32) over the keys of all blocks
    key_ranges: complete ones, in keys of the block
    """
    assert key_ranges.complete, "the causal rule is not in the ranges of a block"
    q_BTND, k_BSKD, _ = block
    features = ["documents", "lse"] + ["grouped"] * (q_BTND.shape[2] != k_BSKD.shape[2])
    request = request_for(q_BTND, *features, head_size=q_BTND.shape[3])
    run = select("attention", IMPLEMENTATIONS, request, implementation).run
    result: Gradients = run(do_BTND, block, whole, key_ranges)
    return result


def attention_block_reference(
    do_BTND: Tensor,
    block: tuple[Tensor, Tensor, Tensor],
    whole: tuple[Tensor, Tensor],
    key_ranges: KeyRanges,
) -> Gradients:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    q_BTND, k_BSKD, v_BSKD = block
    wide = accumulation_dtype(q_BTND.dtype)
    groups = q_BTND.shape[2] // k_BSKD.shape[2]
    scale = 1.0 / math.sqrt(q_BTND.shape[3])
    q, do, o = (x.to(wide).transpose(1, 2) for x in (q_BTND, do_BTND, whole[0]))
    k, v = (x.to(wide).transpose(1, 2).repeat_interleave(groups, dim=1) for x in (k_BSKD, v_BSKD))
    visible = key_ranges.visible(k_BSKD.shape[1], False, 0)[:, None]
    scores = (q @ k.transpose(2, 3)) * scale - whole[1].to(wide)[..., None]
    p = scores.masked_fill(~visible, -math.inf).exp()
    ds = p * (do @ v.transpose(2, 3) - (do * o).sum(-1, keepdim=True))

    def of_keys(left: Tensor, right: Tensor) -> Tensor:
        each = left.transpose(2, 3) @ right
        return each.unflatten(1, (-1, groups)).sum(2).transpose(1, 2).to(q_BTND.dtype)

    dq_BTND = (ds @ k * scale).transpose(1, 2).to(q_BTND.dtype)
    return dq_BTND, of_keys(ds, q) * scale, of_keys(p, do)


def _native(
    ops: Any,
    do_BTND: Tensor,
    block: tuple[Tensor, Tensor, Tensor],
    whole: tuple[Tensor, Tensor],
    key_ranges: KeyRanges,
) -> Gradients:
    scale = 1.0 / math.sqrt(block[0].shape[3])
    # Neither causal nor windowed: that is in the ranges. No dropout.
    options = (False, 0, scale, 0.0, None, 0)
    with torch.no_grad():
        gradients: Gradients = ops.attention_backward(
            do_BTND, None, *block, *whole, key_ranges.bounds_BT2, *options
        )
    return gradients


IMPLEMENTATIONS = (
    *native(KERNELS, _native, cuda_reasons=cuda_reasons),
    Implementation("reference", attention_block_reference, always_supported),
)
