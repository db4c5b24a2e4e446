"""Softmax attention: causal or full, windows, packed documents, grouped queries, dropout.

    o[t, n] = sum_s z[t, s] p[t, s] v[s, n / G]     p[t, :] = softmax over the visible s of
              scale * q[t, n] . k[s, n / G]         G = N / K query heads share a key head
    lse[n, t] = log sum_s exp(scale * q[t, n] . k[s, n / G])     over the visible s

Query t stands at key position p = t + S - T (decoding: T = 1, S keys in the cache). It sees key s
iff s lies in its range (roots.ops.attention_ranges), s <= p if causal, and s > p - window if there
is a window. A query that sees nothing has o = 0, lse = -inf and no gradients. z is dropout of the
weights (roots.ops.attention_dropout), 1 without.

No implementation but the reference stores the scores. Grouped heads go to torch's kernel as they
are: 37 ms at B 8, T 256, N 6, D 64 on one core, against 43 with the key heads repeated.

Legend: B rows, T queries, S keys, N heads, K key heads, D head size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from roots.errors import RootsError, problem
from roots.log import get_logger, log_once
from roots.ops.attention_dropout import RATE_STEPS, AttentionDropout, attention_keep_mask
from roots.ops.attention_ranges import KeyRanges, additive, visible_keys
from roots.ops.dispatch import (
    AUTO,
    Implementation,
    Request,
    accumulation_dtype,
    always_supported,
    request_for,
    select,
)
from roots.ops.dropout import dropout_wanted
from roots.ops.native import Kernel, native


class Options(NamedTuple):
    """What an implementation is told besides q, k and v."""

    causal: bool
    window: int
    scale: float
    key_ranges: KeyRanges | None
    dropout: AttentionDropout | None
    return_lse: bool


@overload
def attention(
    q_BTND: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    causal: bool = ...,
    window: int = ...,
    key_ranges: KeyRanges | None = ...,
    document_starts_BT: Tensor | None = ...,
    scale: float | None = ...,
    dropout: AttentionDropout | None = ...,
    return_lse: Literal[False] = ...,
    recompute: bool = ...,
    implementation: str = ...,
) -> Tensor: ...


@overload
def attention(
    q_BTND: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    causal: bool = ...,
    window: int = ...,
    key_ranges: KeyRanges | None = ...,
    document_starts_BT: Tensor | None = ...,
    scale: float | None = ...,
    dropout: AttentionDropout | None = ...,
    return_lse: Literal[True],
    recompute: bool = ...,
    implementation: str = ...,
) -> tuple[Tensor, Tensor]: ...


def attention(
    q_BTND: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    causal: bool = True,
    window: int = 0,
    key_ranges: KeyRanges | None = None,
    document_starts_BT: Tensor | None = None,
    scale: float | None = None,
    dropout: AttentionDropout | None = None,
    return_lse: bool = False,
    recompute: bool = False,
    implementation: str = AUTO,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return o_BTND, with return_lse also lse_BNT (float32; float64 for float64).

    window:             the keys up to its own position that a query sees, 0 for all
    key_ranges:         KeyRanges.of_documents or .of_lengths; complete ones stand for causal too
    document_starts_BT: what KeyRanges.of_documents is made of, for a single call
    scale:              None means 1 / sqrt(D)
    recompute:          compute scores again in the backward pass instead of storing them; nothing
                        to do for an implementation that stores none
    Raises RootsError if K does not divide N, if S < T under causal, for a negative window, or for
    both key ranges and document starts.
    """
    _check(q_BTND, k_BSKD, window, key_ranges, document_starts_BT)
    if document_starts_BT is not None:
        key_ranges = KeyRanges.of_documents(document_starts_BT, k_BSKD.shape[1], causal=causal)
    causal = causal and not (key_ranges is not None and key_ranges.complete)
    num_queries, num_keys = q_BTND.shape[1], k_BSKD.shape[1]
    if causal and num_keys < num_queries:
        rule = f"must be at least the {num_queries} queries under a causal mask"
        raise RootsError(problem("number of keys", num_keys, rule, "pass causal=False"))
    if dropout is not None and not dropout_wanted(dropout.rate, dropout.keys_B):
        dropout = None
    scale = 1.0 / math.sqrt(q_BTND.shape[3]) if scale is None else scale
    options = Options(causal, window, scale, key_ranges, dropout, return_lse)
    request = _request(q_BTND, k_BSKD, options)
    run = select("attention", IMPLEMENTATIONS, request, implementation).run
    if recompute:
        run = _recomputed(run)
    o_BTND, lse_BNT = run(q_BTND, k_BSKD, v_BSKD, options)
    return (o_BTND, lse_BNT) if return_lse else o_BTND


def attention_reference(
    q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, options: Options
) -> tuple[Tensor, Tensor | None]:
    """The formula in plain torch with all scores stored, in fp32 (float64 for float64)."""
    num_queries, num_heads = q_BTND.shape[1:3]
    num_keys, key_heads = k_BSKD.shape[1:3]
    weights_BNTS, lse_BNT = attention_weights(q_BTND, k_BSKD, options)
    v_BNSD = v_BSKD.to(weights_BNTS.dtype).transpose(1, 2)
    v_BNSD = v_BNSD.repeat_interleave(num_heads // key_heads, dim=1)
    if options.dropout is not None:
        keep_BNTS = attention_keep_mask(options.dropout, num_queries, num_keys, num_heads)
        weights_BNTS = weights_BNTS * keep_BNTS * options.dropout.scale
    return (weights_BNTS @ v_BNSD).transpose(1, 2).to(q_BTND.dtype), lse_BNT


def attention_weights(
    q_BTND: Tensor, k_BSKD: Tensor, options: Options, bias_1NTS: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """What the reference weighs values by, before dropout, weights_BNTS; and lse_BNT if asked for.

    bias_1NTS: added to the scores, see roots.models.attention.biased_attention
    """
    wide = accumulation_dtype(q_BTND.dtype)
    num_queries, num_heads = q_BTND.shape[1:3]
    num_keys, key_heads = k_BSKD.shape[1:3]
    q_BNTD = q_BTND.to(wide).transpose(1, 2) * options.scale
    k_BNSD = k_BSKD.to(wide).transpose(1, 2).repeat_interleave(num_heads // key_heads, dim=1)
    scores_BNTS = q_BNTD @ k_BNSD.transpose(2, 3)
    if bias_1NTS is not None:
        scores_BNTS = scores_BNTS + bias_1NTS
    visible = _visible(options, num_queries, num_keys, q_BTND.device)
    if visible is None:
        visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q_BTND.device)
    # Queries that see nothing: any finite scores, and what they lead to is cut out.
    blind = ~visible.any(dim=-1, keepdim=True)
    scores_BNTS = scores_BNTS.masked_fill(~visible, -math.inf).masked_fill(blind, 0.0)
    weights_BNTS = scores_BNTS.softmax(dim=-1).masked_fill(blind, 0.0)
    lse_BNT = None
    if options.return_lse:
        lse_BNT = scores_BNTS.logsumexp(dim=-1).masked_fill(blind.squeeze(-1), -math.inf)
    return weights_BNTS, lse_BNT


def _attention_sdpa(
    q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, options: Options
) -> tuple[Tensor, None]:
    """torch's fused attention on transposed views: no copy of q, k, v or o is made."""
    q_BNTD, k_BKSD, v_BKSD = (x.transpose(1, 2) for x in (q_BTND, k_BSKD, v_BSKD))
    num_queries, num_keys = q_BTND.shape[1], k_BSKD.shape[1]
    is_causal, mask = False, None
    if options.key_ranges is not None:
        mask = options.key_ranges.additive_mask(
            num_keys, options.causal, options.window, q_BTND.dtype
        )
    elif options.causal and num_queries == num_keys and options.window == 0:
        # torch aligns is_causal with the first key; here the last query sees the last key.
        is_causal = num_queries > 1
    elif num_queries > 1 or options.window > 0:
        visible_TS = _visible(options, num_queries, num_keys, q_BTND.device)
        mask = None if visible_TS is None else additive(visible_TS, q_BTND.dtype)[None, None]
    grouped = q_BTND.shape[2] != k_BSKD.shape[2]
    if grouped and mask is not None and q_BTND.device.type == "cuda":
        # CUDA's kernels that take a mask know no groups; torch would fall back to stored scores.
        groups = q_BTND.shape[2] // k_BSKD.shape[2]
        k_BKSD = k_BKSD.repeat_interleave(groups, dim=1)
        v_BKSD = v_BKSD.repeat_interleave(groups, dim=1)
        grouped = False
    o_BNTD = F.scaled_dot_product_attention(
        q_BNTD, k_BKSD, v_BKSD, mask, is_causal=is_causal, scale=options.scale, enable_gqa=grouped
    )
    return o_BNTD.transpose(1, 2), None


def _sdpa_reasons(request: Request) -> list[str]:
    reasons = []
    if "dropout" in request.features:
        reasons.append(
            "torch draws attention dropout from a generator, so the mask would change with the "
            "layout, with recompute and after a resume."
        )
    if "lse" in request.features:
        reasons.append("torch's scaled_dot_product_attention returns no log-sum-exp.")
    if "unusual_scale" in request.features:
        reasons.append(
            "torch's kernel masks before it scales, so a scale that is not positive shows what is "
            "masked."
        )
    return reasons


def _recomputed(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` without stored scores: the reference under a checkpoint, the others as they are."""
    if run is not attention_reference:
        if not torch.compiler.is_compiling():
            line = (
                "recompute: fused attention stores no scores, so selective recompute does nothing"
            )
            log_once(get_logger("ops"), line)
        return run
    return functools.partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)


def _visible(
    options: Options, num_queries: int, num_keys: int, device: torch.device
) -> Tensor | None:
    if options.key_ranges is not None:
        return options.key_ranges.visible(num_keys, options.causal, options.window)[:, None]
    return visible_keys(num_queries, num_keys, options.causal, options.window, device)


def _request(q_BTND: Tensor, k_BSKD: Tensor, options: Options) -> Request:
    """The features of a call, by which implementations are chosen."""
    features = {
        "documents": options.key_ranges is not None,
        "window": options.window > 0,
        "dropout": options.dropout is not None,
        "grouped": q_BTND.shape[2] != k_BSKD.shape[2],
        "lse": options.return_lse,
        "unusual_scale": options.scale <= 0.0,
    }
    wanted = [name for name, present in features.items() if present]
    return request_for(q_BTND, *wanted, head_size=q_BTND.shape[3])


def _check(
    q_BTND: Tensor,
    k_BSKD: Tensor,
    window: int,
    key_ranges: KeyRanges | None,
    document_starts_BT: Tensor | None,
) -> None:
    num_heads, key_heads = q_BTND.shape[2], k_BSKD.shape[2]
    if num_heads % key_heads:
        rule = f"must be a multiple of the {key_heads} key heads"
        raise RootsError(problem("number of query heads", num_heads, rule, "change num_kv_heads"))
    if window < 0:
        raise RootsError(problem("window", window, "must not be negative", "use 0 for none"))
    if key_ranges is None:
        return
    if document_starts_BT is not None:
        rule = "is given together with document_starts_BT"
        raise RootsError(problem("key_ranges", None, rule, "pass one of them"))
    if key_ranges.complete and window > 0:
        rule = "is given together with complete key ranges"
        raise RootsError(problem("window", window, rule, "pass it to KeyRanges.of_lengths"))
    if key_ranges.bounds_BT2.shape[:2] != q_BTND.shape[:2]:
        found, wanted = list(key_ranges.bounds_BT2.shape[:2]), list(q_BTND.shape[:2])
        rule = f"must be for the {wanted} rows and queries of q"
        raise RootsError(problem("key_ranges", found, rule, "build them for this call"))


def _attention_native(
    ops: Any, q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    """ROOTS' own kernels: csrc/cpu and csrc/cuda."""
    dropout, ranges = options.dropout, options.key_ranges
    o_BTND, lse_BNT = ops.attention_forward(
        q_BTND,
        k_BSKD,
        v_BSKD,
        None if ranges is None else ranges.bounds_BT2,
        options.causal,
        options.window,
        options.scale,
        0.0 if dropout is None else dropout.threshold / RATE_STEPS,
        None if dropout is None else dropout.philox_keys(),
        0 if dropout is None else dropout.first_head,
    )
    return o_BTND, lse_BNT


def _forward_fake(q_BTND: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows, queries, heads, _size = q_BTND.shape
    lse_BNT = q_BTND.new_empty((rows, heads, queries), dtype=torch.float32)
    return q_BTND.new_empty(q_BTND.shape), lse_BNT


def _backward_fake(
    grad_o_BTND: Tensor, grad_lse_BNT: Tensor | None, *operands: Any
) -> tuple[Tensor, Tensor, Tensor]:
    q_BTND, k_BSKD, v_BSKD = operands[:3]
    return tuple(x.new_empty(x.shape) for x in (q_BTND, k_BSKD, v_BSKD))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Kept for backward: q, k, v, o and the log-sum-exp; weights and draws are computed again."""
    q_BTND, k_BSKD, v_BSKD, bounds_BT2, causal, window, scale, rate, keys_B, first_head = inputs
    ctx.save_for_backward(q_BTND, k_BSKD, v_BSKD, *output, bounds_BT2, keys_B)
    ctx.options = causal, window, scale, rate, first_head
    ctx.set_materialize_grads(False)


def _backward(
    ops: Any, ctx: Any, grad_o_BTND: Tensor | None, grad_lse_BNT: Tensor | None
) -> tuple[Tensor | None, ...]:
    q_BTND, k_BSKD, v_BSKD, o_BTND, lse_BNT, bounds_BT2, keys_B = ctx.saved_tensors
    causal, window, scale, rate, first_head = ctx.options
    grads = ops.attention_backward(
        torch.zeros_like(o_BTND) if grad_o_BTND is None else grad_o_BTND,
        grad_lse_BNT,
        q_BTND,
        k_BSKD,
        v_BSKD,
        o_BTND,
        lse_BNT,
        bounds_BT2,
        causal,
        window,
        scale,
        rate,
        keys_B,
        first_head,
    )
    return (*grads, *[None] * 7)


def cuda_reasons(request: Request) -> list[str]:
    """What the CUDA kernels cannot do."""
    if request.head_size % 8 == 0 and 32 <= request.head_size <= 256:
        return []
    return [
        f"the CUDA kernels take head sizes from 32 to 256 in steps of 8, not {request.head_size}."
    ]


KERNELS = (
    Kernel("attention_forward", _forward_fake, _setup_context, _backward),
    Kernel("attention_backward", _backward_fake),
)

IMPLEMENTATIONS = (
    *native(KERNELS, _attention_native, cuda_reasons=cuda_reasons),
    Implementation("torch_sdpa", _attention_sdpa, _sdpa_reasons),
    Implementation("reference", attention_reference, always_supported),
)
