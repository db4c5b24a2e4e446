"""Softmax attention: causal or full, grouped-query, packed documents, dropout by counter.

    o[t, n] = sum_s p[t, s] v[s, n / G]        p[t, :] = softmax over the visible s of
              scale * q[t, n] . k[s, n / G]    G = N / K query heads share a key head

Query t stands at key position t + S - T (decoding: T = 1, S keys in the cache). Causal: key s is
visible to it iff document_starts[t] <= s <= t + S - T, in key positions. Not causal: all keys, or,
with document starts (S = T), the keys of the same document.

torch's fused kernel never stores the scores. Measured on one core at B 8, T 256, N 6, D 64, forward
and backward: is_causal 48 ms fp32 / 50 ms bf16, additive mask 41 / 48, boolean mask 44 / 45; the
additive one is taken as given, a boolean one converted at every call. So for documents a model
builds the additive mask once a forward (attention_mask) and shares it between its layers.
Grouped heads go to torch's kernel as they are: 37 ms, against 43 with the key heads repeated.

Legend: B rows, T queries, S keys, N heads, K key heads, D head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    request_for,
    select,
)
from roots.ops.dropout import dropout_wanted, keep_mask, keep_scale, token_keys
from roots.seeding import random_bits


@dataclass(frozen=True)
class AttentionDropout:
    """Dropout of the attention weights, a pure function of (row key, site, global head, t, s).

    first_head: global index of the first local query head, on a rank that holds a share of them.
    """

    rate: float
    keys_B: Tensor
    site: str
    first_head: int = 0


def attention(
    q_BTND: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    causal: bool = True,
    document_starts_BT: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: AttentionDropout | None = None,
    implementation: str = AUTO,
) -> Tensor:
    """Return o_BTND. `scale` None means 1 / sqrt(D).

    document_starts_BT: int64, for each query the key position of the first token of its document
    (or of its first real token under left padding). `mask` is what attention_mask made of it: give
    one of the two. Raises RootsError if K does not divide N, if S < T under causal, or if both a
    mask and document starts are given.
    """
    _check(q_BTND, k_BSKD, causal, document_starts_BT is not None and mask is not None)
    if document_starts_BT is not None:
        mask = attention_mask(document_starts_BT, k_BSKD.shape[1], causal, q_BTND.dtype)
    if dropout is not None and not dropout_wanted(dropout.rate, dropout.keys_B):
        dropout = None
    features = ["dropout"] if dropout is not None else []
    if mask is not None:
        features.append("documents")
    if q_BTND.shape[2] != k_BSKD.shape[2]:
        features.append("grouped")
    request = request_for(q_BTND, *features, head_size=q_BTND.shape[3])
    run = select("attention", IMPLEMENTATIONS, request, implementation).run
    scale = 1.0 / math.sqrt(q_BTND.shape[3]) if scale is None else scale
    o_BTND: Tensor = run(
        q_BTND, k_BSKD, v_BSKD, causal=causal, mask=mask, scale=scale, dropout=dropout
    )
    return o_BTND


def attention_mask(
    document_starts_BT: Tensor | None,
    num_keys: int,
    causal: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor | None:
    """Return the additive mask [B, 1, T, S] in `dtype`: 0 where visible, -inf elsewhere.

    None without document starts: attention then needs no mask. Build it once and share it between
    layers: it takes B * T * S elements. Raises RootsError for document starts of a non-causal
    attention with S != T, where the documents of the keys are not known.
    """
    if document_starts_BT is None:
        return None
    starts_BT1 = document_starts_BT[:, :, None]
    num_queries = starts_BT1.shape[1]
    if causal:
        visible = _causal(num_queries, num_keys, starts_BT1.device)
        keys_S = torch.arange(num_keys, device=starts_BT1.device)
        visible = visible & (keys_S >= starts_BT1)
    elif num_queries == num_keys:
        visible = starts_BT1 == document_starts_BT[:, None, :]
    else:
        rule = f"must equal the {num_queries} queries for documents without a causal mask"
        raise RootsError(problem("number of keys", num_keys, rule, "pass no document starts"))
    return _additive(visible, dtype)[:, None]


def attention_reference(
    q_BTND: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    causal: bool,
    mask: Tensor | None,
    scale: float,
    dropout: AttentionDropout | None,
) -> Tensor:
    """The formula in plain torch with all scores stored, in fp32 (float64 for float64)."""
    wide = accumulation_dtype(q_BTND.dtype)
    num_queries, num_heads = q_BTND.shape[1:3]
    num_keys, key_heads = k_BSKD.shape[1:3]
    groups = num_heads // key_heads
    q_BNTD = q_BTND.to(wide).transpose(1, 2) * scale
    k_BNSD = k_BSKD.to(wide).transpose(1, 2).repeat_interleave(groups, dim=1)
    v_BNSD = v_BSKD.to(wide).transpose(1, 2).repeat_interleave(groups, dim=1)
    scores_BNTS = q_BNTD @ k_BNSD.transpose(2, 3)
    if mask is not None:
        scores_BNTS = scores_BNTS + mask.to(wide)
    elif causal:
        visible_TS = _causal(num_queries, num_keys, q_BTND.device)
        scores_BNTS = scores_BNTS.masked_fill(~visible_TS, -math.inf)
    weights_BNTS = scores_BNTS.softmax(dim=-1)
    if dropout is not None:
        keep_BNTS = attention_keep_mask(dropout, num_queries, num_keys, num_heads)
        weights_BNTS = weights_BNTS * keep_BNTS * keep_scale(dropout.rate)
    return (weights_BNTS @ v_BNSD).transpose(1, 2).to(q_BTND.dtype)


def attention_keep_mask(
    dropout: AttentionDropout, num_queries: int, num_keys: int, num_heads: int
) -> Tensor:
    """Return which attention weights are kept, bool [B, N, T, S].

    Query t is counted by its key position t + S - T, so that the mask of a row does not depend on
    how many of its queries are computed at once.
    """
    keys_BT = token_keys(dropout.keys_B, dropout.site, num_queries, num_keys - num_queries)
    first = dropout.first_head
    heads_N1 = torch.arange(first, first + num_heads, device=keys_BT.device)[:, None]
    return keep_mask(random_bits(keys_BT[:, None, :], heads_N1), num_keys, dropout.rate)


def _attention_sdpa(
    q_BTND: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    causal: bool,
    mask: Tensor | None,
    scale: float,
    dropout: None,
) -> Tensor:
    """torch's fused attention on transposed views: no copy of q, k, v or o is made."""
    q_BNTD, k_BKSD, v_BKSD = (x.transpose(1, 2) for x in (q_BTND, k_BSKD, v_BSKD))
    num_queries, num_keys = q_BTND.shape[1], k_BSKD.shape[1]
    is_causal = causal and mask is None and num_queries > 1
    if is_causal and num_queries != num_keys:
        # torch aligns is_causal with the first key; here the last query sees the last key.
        mask = _additive(_causal(num_queries, num_keys, q_BTND.device), q_BTND.dtype)[None, None]
        is_causal = False
    grouped = q_BTND.shape[2] != k_BSKD.shape[2]
    if grouped and mask is not None and q_BTND.device.type == "cuda":
        # CUDA's kernels that take a mask know no groups; torch would fall back to stored scores.
        groups = q_BTND.shape[2] // k_BSKD.shape[2]
        k_BKSD = k_BKSD.repeat_interleave(groups, dim=1)
        v_BKSD = v_BKSD.repeat_interleave(groups, dim=1)
        grouped = False
    o_BNTD = F.scaled_dot_product_attention(
        q_BNTD, k_BKSD, v_BKSD, mask, is_causal=is_causal, scale=scale, enable_gqa=grouped
    )
    return o_BNTD.transpose(1, 2)


def _sdpa_reasons(request: Request) -> list[str]:
    if "dropout" in request.features:
        return [
            "torch draws attention dropout from a generator, so the mask would change with the "
            "layout, with recompute and after a resume."
        ]
    return []


def _causal(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """Return bool [T, S]: key s is not after the position t + S - T of query t."""
    positions_T1 = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    return torch.arange(num_keys, device=device) <= positions_T1


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, -inf elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, -math.inf)


def _check(q_BTND: Tensor, k_BSKD: Tensor, causal: bool, both_masks: bool) -> None:
    num_heads, key_heads = q_BTND.shape[2], k_BSKD.shape[2]
    if num_heads % key_heads:
        rule = f"must be a multiple of the {key_heads} key heads"
        raise RootsError(problem("number of query heads", num_heads, rule, "change num_kv_heads"))
    num_queries, num_keys = q_BTND.shape[1], k_BSKD.shape[1]
    if causal and num_keys < num_queries:
        rule = f"must be at least the {num_queries} queries under a causal mask"
        raise RootsError(problem("number of keys", num_keys, rule, "pass causal=False"))
    if both_masks:
        rule = "is given together with document_starts_BT"
        raise RootsError(problem("mask", None, rule, "pass one of them"))


IMPLEMENTATIONS = (
    Implementation("torch_sdpa", _attention_sdpa, _sdpa_reasons),
    Implementation("reference", attention_reference, always_supported),
)
