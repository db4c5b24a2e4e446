"""Softmax of attention scores in one pass: scale, mask and softmax over the keys.

    y[b, n, t, :] = softmax(scale * scores[b, n, t, :] + mask), over the visible keys; 0 elsewhere
    dscores = scale * y * (dy - sum_s(dy * y))

Key s is visible if the mask lets it take part and, when causal, s <= t + S - T: the last query sees
all keys. A query without visible keys gets zeros, not NaN, and zero gradients. For attention itself
see roots.ops.attention, which stores no scores; this op is for those who need the weights.

Legend: B rows, N heads, T queries, S keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from roots.ops.dispatch import (
    AUTO,
    Implementation,
    Request,
    accumulation_dtype,
    always_supported,
    request_for,
    select,
)
from roots.ops.native import Kernel, native


def scaled_masked_softmax(
    scores_BNTS: Tensor,
    mask: Tensor | None = None,
    scale: float = 1.0,
    *,
    causal: bool = False,
    implementation: str = AUTO,
) -> Tensor:
    """Return y_BNTS in the dtype of the scores; sums are carried in fp32.

    mask: [B or 1, N or 1, T or 1, S]. Boolean: true takes part, as in torch's
    scaled_dot_product_attention. Of the dtype of the scores: added after scaling; -inf hides a key.
    A mask that requires a gradient gets one from plain torch operations only.
    """
    features = ("mask_gradient",) if mask is not None and mask.requires_grad else ()
    request = request_for(scores_BNTS, *features)
    run = select("scaled_masked_softmax", IMPLEMENTATIONS, request, implementation).run
    result: Tensor = run(scores_BNTS, mask, scale, causal)
    return result


def scaled_masked_softmax_reference(
    scores_BNTS: Tensor, mask: Tensor | None = None, scale: float = 1.0, causal: bool = False
) -> Tensor:
    """The formula in plain torch, in fp32 (float64 for float64)."""
    wide = accumulation_dtype(scores_BNTS.dtype)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(wide)
    return _plain(scores_BNTS.to(wide), mask, scale, causal).to(scores_BNTS.dtype)


def _plain(scores_BNTS: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    logits_BNTS = scores_BNTS * scale
    if mask is not None and mask.dtype == torch.bool:
        logits_BNTS = logits_BNTS.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        logits_BNTS = logits_BNTS + mask
    if causal:
        queries, keys = scores_BNTS.shape[2:]
        ones_TS = torch.ones(queries, keys, dtype=torch.bool, device=scores_BNTS.device)
        logits_BNTS = logits_BNTS.masked_fill(ones_TS.triu(keys - queries + 1), -torch.inf)
    # Rows without keys are taken out before, so that no NaN enters their gradient.
    empty_BNT1 = (logits_BNTS == -torch.inf).all(dim=-1, keepdim=True)
    y_BNTS = torch.softmax(logits_BNTS.masked_fill(empty_BNT1, 0.0), dim=-1)
    return y_BNTS.masked_fill(empty_BNT1, 0.0)


def _native(ops: Any, scores: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    y: Tensor = ops.scaled_masked_softmax_forward(scores, mask, scale, causal)
    return y


def _reasons(request: Request) -> list[str]:
    if "mask_gradient" in request.features:
        return ["the kernels give no gradient for an added mask."]
    return []


def _fake_forward(scores: Tensor, *operands: Any) -> Tensor:
    return scores.new_empty(scores.shape)


def _fake_backward(dy: Tensor, y: Tensor, scale: float) -> Tensor:
    return y.new_empty(y.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.scale = inputs[2]


def _backward(ops: Any, ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
    (y,) = ctx.saved_tensors
    return ops.scaled_masked_softmax_backward(dy, y, ctx.scale), None, None, None


KERNELS = (
    Kernel("scaled_masked_softmax_forward", _fake_forward, _setup_context, _backward),
    Kernel("scaled_masked_softmax_backward", _fake_backward),
)
IMPLEMENTATIONS = (
    *native(KERNELS, _native, _reasons),
    Implementation("torch", _plain, always_supported),
    Implementation("reference", scaled_masked_softmax_reference, always_supported),
)
