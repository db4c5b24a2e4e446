"""Attention whose scores get a bias per head: the path of models with relative or ALiBi positions.

    o[t, n] = sum_s z[t, s] p[t, s] v[s, n / G]     p[t, :] = softmax over the visible s of
              scale * q[t, n] . k[s, n / G] + bias[n, t, s]

The fused kernels of roots.ops.attention take no bias, so the scores of all heads are stored here: a
matrix product, roots.ops.scaled_masked_softmax, a second product. That costs 3 B N T S elements a
layer more than the fused kernels keep; which path runs is logged once.

Legend: B rows, T queries, S keys, N query heads, K key heads, D head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from roots.log import get_logger, log_once
from roots.ops import AttentionDropout, KeyRanges, scaled_masked_softmax
from roots.ops.attention_dropout import attention_keep_mask

_logger = get_logger(__name__)


def biased_attention(
    q_BTND: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    bias_1NTS: Tensor,
    *,
    causal: bool,
    window: int = 0,
    key_ranges: KeyRanges | None = None,
    scale: float | None = None,
    dropout: AttentionDropout | None = None,
) -> Tensor:
    """Return o_BTND; everything but the bias means what it means to roots.ops.attention."""
    if not torch.compiler.is_compiling():
        log_once(_logger, "attention: scores are stored, because a bias is added to them")
    num_queries, num_heads, head_size = q_BTND.shape[1:]
    num_keys, groups = k_BSKD.shape[1], num_heads // k_BSKD.shape[2]
    scale = 1.0 / math.sqrt(head_size) if scale is None else scale
    q_BNTD = q_BTND.transpose(1, 2)
    k_BNSD, v_BNSD = (x.transpose(1, 2).repeat_interleave(groups, dim=1) for x in (k_BSKD, v_BSKD))
    # The softmax has no gradient for what is added inside it, and the bias may be learned.
    scores_BNTS = q_BNTD @ k_BNSD.transpose(2, 3) * scale + bias_1NTS
    mask_B1TS = None
    if key_ranges is not None:
        causal = causal and not key_ranges.complete
        mask_B1TS = key_ranges.additive_mask(num_keys, causal, window, q_BTND.dtype)
        causal = False
    elif window > 0:
        visible = KeyRanges(_all_keys(q_BTND, num_keys))
        mask_B1TS = visible.additive_mask(num_keys, causal, window, q_BTND.dtype)
    weights_BNTS = scaled_masked_softmax(scores_BNTS, mask_B1TS, causal=causal)
    if dropout is not None and dropout.rate > 0.0:
        keep_BNTS = attention_keep_mask(dropout, num_queries, num_keys, num_heads)
        weights_BNTS = weights_BNTS * keep_BNTS * dropout.scale
    return (weights_BNTS @ v_BNSD).transpose(1, 2)


def _all_keys(q_BTND: Tensor, num_keys: int) -> Tensor:
    """Bounds of one row that hide nothing, int32 [1, T, 2]."""
    bounds_2 = torch.tensor([0, num_keys], dtype=torch.int32, device=q_BTND.device)
    return bounds_2.expand(1, q_BTND.shape[1], 2)
