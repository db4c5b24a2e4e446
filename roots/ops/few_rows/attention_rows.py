"""Attention of the newest tokens of several rows, each to its own keys, in one call.

    o = softmax(scale q k^T + bias, over the visible keys) v

What generation needs besides products: each row has keys and values of its own, in memory of its
own and as many as it is long, so that a call for each row and layer would cost more than it
computes. For inference alone: there is no gradient. Scores and sums are fp32. What a token gives
depends neither on the rows beside it nor on threads.

Legend: N tokens of all rows, n heads, k key heads, S keys of a row (each row its own number), D
head size, L distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

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
from roots.ops.native import Kernel, native_on_cpu


class _Options(NamedTuple):
    """What an implementation is told besides the tensors of rows."""

    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    scale: float
    causal: bool
    window: int
    bias_nL: Tensor | None


def attention_rows(
    q_NnD: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    lengths: Sequence[int] | None = None,
    counts: Sequence[int] | None = None,
    scale: float | None = None,
    causal: bool = True,
    window: int = 0,
    bias_nL: Tensor | None = None,
    implementation: str = AUTO,
) -> Tensor:
    """Return o_NnD, in the dtype of q, without gradient.

    keys, values: of each row, [S or more, k, D]; the last dim is contiguous. n is a multiple of k.
    lengths:      how many of them count, all by default
    counts:       how many of the tokens of q are the row's, in turn; one each by default
    scale:        1 / sqrt(D) by default
    causal:       a row's tokens are its last keys, and each sees itself and what is before it;
                  else (cross-attention) each sees all keys
    window:       if positive, a token sees that many keys at most, itself included; causal only
    bias_nL:      fp32; bias_nL[n, d] is added to the scores of keys d tokens before, as ALiBi and
                  relative positions do; causal only

    Raises RootsError for shapes that do not fit, and where a gradient is wanted.
    """
    options = _Options(
        tuple(len(each) for each in keys) if lengths is None else tuple(lengths),
        (1,) * len(keys) if counts is None else tuple(counts),
        1.0 / math.sqrt(q_NnD.shape[-1]) if scale is None else scale,
        causal,
        window,
        bias_nL,
    )
    _validate(q_NnD, keys, values, options)
    request = request_for(q_NnD, head_size=q_NnD.shape[-1])
    run = select("attention_rows", IMPLEMENTATIONS, request, implementation).run
    o_NnD: Tensor = run(q_NnD, list(keys), list(values), options)
    return o_NnD


def attention_rows_reference(
    q_NnD: Tensor, keys: list[Tensor], values: list[Tensor], options: _Options
) -> Tensor:
    """The formula in plain torch, row by row, in fp32 (float64 for float64)."""
    wide = accumulation_dtype(q_NnD.dtype)
    outputs = []
    for q_TnD, k_SkD, v_SkD, length in _rows(q_NnD, keys, values, options):
        groups = q_TnD.shape[1] // k_SkD.shape[1]
        k_SnD, v_SnD = (x.to(wide).repeat_interleave(groups, 1) for x in (k_SkD, v_SkD))
        scores_nTS = torch.einsum("tnd,snd->nts", q_TnD.to(wide), k_SnD) * options.scale
        mask_nTS = _mask(q_TnD.shape[0], length, q_NnD, options)
        weights_nTS = (scores_nTS if mask_nTS is None else scores_nTS + mask_nTS).softmax(-1)
        outputs.append(torch.einsum("nts,snd->tnd", weights_nTS, v_SnD))
    return torch.cat(outputs).to(q_NnD.dtype) if outputs else torch.empty_like(q_NnD)


def _attention_rows_torch(
    q_NnD: Tensor, keys: list[Tensor], values: list[Tensor], options: _Options
) -> Tensor:
    """A call of torch's fused attention for every row."""
    outputs = []
    for q_TnD, k_SkD, v_SkD, length in _rows(q_NnD, keys, values, options):
        if length == 0:
            outputs.append(torch.zeros_like(q_TnD))
            continue
        mask_nTS = _mask(q_TnD.shape[0], length, q_NnD, options)
        o_1nTD = F.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in (q_TnD, k_SkD, v_SkD)),
            attn_mask=None if mask_nTS is None else mask_nTS[None].to(q_NnD.dtype),
            scale=options.scale,
            enable_gqa=k_SkD.shape[1] != q_TnD.shape[1],
        )
        outputs.append(o_1nTD[0].transpose(0, 1))
    return torch.cat(outputs) if outputs else torch.empty_like(q_NnD)


def _rows(
    q_NnD: Tensor, keys: list[Tensor], values: list[Tensor], options: _Options
) -> list[tuple[Tensor, Tensor, Tensor, int]]:
    """The tokens of each row, and the keys and values of it that count."""
    parts = q_NnD.split(list(options.counts)) if options.counts else ()
    cut = zip(parts, keys, values, options.lengths, strict=True)
    return [(q_TnD, k[:length], v[:length], length) for q_TnD, k, v, length in cut]


def _mask(tokens: int, length: int, q_NnD: Tensor, options: _Options) -> Tensor | None:
    """What is added to the scores of a row, [1 or n, T, S]; None for nothing."""
    one_sees_all = tokens == 1 and not 0 < options.window < length
    if not options.causal or (one_sees_all and options.bias_nL is None):
        return None
    place_S = torch.arange(length, device=q_NnD.device)
    distance_TS = place_S[length - tokens :, None] - place_S
    hidden_TS = distance_TS < 0
    if options.window > 0:
        hidden_TS |= distance_TS >= options.window
    dtype = accumulation_dtype(q_NnD.dtype)
    if options.bias_nL is None:
        added_nTS = torch.zeros(1, tokens, length, dtype=dtype, device=q_NnD.device)
    else:
        last = options.bias_nL.shape[1] - 1
        added_nTS = options.bias_nL[:, distance_TS.clamp(0, last)].to(dtype)
    return added_nTS.masked_fill(hidden_TS, -torch.inf)


def _validate(
    q_NnD: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], options: _Options
) -> None:
    if torch.is_grad_enabled() and any(each.requires_grad for each in (q_NnD, *keys, *values)):
        fix = "call it under torch.no_grad(), or attention for training"
        raise _wrong("requires_grad", "True", "has no gradient", fix)
    sizes = [len(each) for each in (keys, values, options.lengths, options.counts)]
    if len(set(sizes)) > 1:
        rule = "must be as many keys as values, lengths and counts"
        raise _wrong("rows", sizes, rule, "pass one of each for every row")
    if q_NnD.dim() != 3 or sum(options.counts) != q_NnD.shape[0]:
        rule = f"must be [tokens of all rows, heads, head size] with {sum(options.counts)} tokens"
        raise _wrong("q", list(q_NnD.shape), rule, "pass the counts of its tokens")
    for r, (k_SkD, v_SkD) in enumerate(zip(keys, values, strict=True)):
        _validate_row(q_NnD, k_SkD, v_SkD, options.lengths[r], options.counts[r], options.causal)
    if options.bias_nL is not None or options.window > 0:
        _validate_distances(q_NnD, options)


def _validate_row(
    q_NnD: Tensor, k_SkD: Tensor, v_SkD: Tensor, length: int, count: int, causal: bool
) -> None:
    for name, tensor in (("keys", k_SkD), ("values", v_SkD)):
        fits = tensor.dim() == 3 and tensor.shape[2] == q_NnD.shape[2]
        if not fits or q_NnD.shape[1] % max(tensor.shape[1], 1) or tensor.dtype != q_NnD.dtype:
            rule = f"must be [tokens, key heads, head size] of q's dtype for q {list(q_NnD.shape)}"
            raise _wrong(name, list(tensor.shape), rule, "cut them from the cache of one model")
        if not 0 <= length <= tensor.shape[0]:
            rule = f"must be within the {tensor.shape[0]} tokens of {name}"
            raise _wrong("length", length, rule, "pass how many tokens the row has")
    if causal and count > length:
        rule = f"must be at most the row's length, {length}"
        raise _wrong("count", count, rule, "append the keys of its tokens first")


def _validate_distances(q_NnD: Tensor, options: _Options) -> None:
    if not options.causal:
        rule = "has neither window nor bias"
        raise _wrong("causal", "False", rule, "leave them out where all keys are seen")
    if options.bias_nL is None:
        return
    longest = max(options.lengths, default=0)
    longest = min(longest, options.window) if options.window > 0 else longest
    heads, distances = options.bias_nL.shape
    if heads != q_NnD.shape[1] or distances < longest:
        rule = f"must be [{q_NnD.shape[1]} heads, {longest} distances or more]"
        raise _wrong("bias", [heads, distances], rule, "make it for the longest row")


def _wrong(name: str, value: object, rule: str, fix: str) -> RootsError:
    return RootsError(problem(f"{name} of attention_rows", value, rule, fix))


def _unsupported(request: Request) -> list[str]:
    if request.dtype != torch.float16:
        return []
    return ["the kernel is for float32 and bfloat16, not for float16."]


def _native(
    ops: Any, q_NnD: Tensor, keys: list[Tensor], values: list[Tensor], options: _Options
) -> Tensor:
    lengths, counts = list(options.lengths), list(options.counts)
    rest = (options.scale, options.causal, options.window, options.bias_nL)
    o_NnD: Tensor = ops.attention_rows(q_NnD, keys, values, lengths, counts, *rest)
    return o_NnD


def _fake(q_NnD: Tensor, *_: Any) -> Tensor:
    return q_NnD.new_empty(q_NnD.shape)


KERNELS = (Kernel("attention_rows", _fake),)
IMPLEMENTATIONS = (
    native_on_cpu(KERNELS, _native, _unsupported),
    Implementation("torch", _attention_rows_torch, always_supported),
    Implementation("reference", attention_rows_reference, always_supported),
)
