"""Attention of tests/bench/ops.py: against every backend of scaled_dot_product_attention.

FLOPs as in the literature (Dao, FlashAttention-2, 2023, section 4.1): 4 B N T S D forward, half
of it under a causal mask, and 2.5 times as many backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from roots import ops
from tests.bench.cases import Bench, Case

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def attention(bench: Bench, implementation: str = "roots") -> Iterator[Case]:
    """Causal and full against each backend; documents and dropout against torch's best."""
    sizes = bench.sizes
    for head in sizes.head_sizes:
        q, k, v = (bench.normal(sizes.batch, sizes.sequence, sizes.heads, head) for _ in range(3))
        shape = f"B {sizes.batch} T {sizes.sequence} N {sizes.heads} D {head}"
        for causal in (True, False):
            sides = _backends(bench, (q, k, v), causal)
            for name, theirs in sides.items():

                def ours(causal=causal, q=q, k=k, v=v) -> Tensor:
                    return ops.attention(q, k, v, causal=causal, implementation=implementation)

                kind = f"{'causal' if causal else 'full'}, torch {name}"
                yield from _pair(bench, f"{shape}, {kind}", (ours, theirs), (q, k, v), causal)
        yield from _documents(bench, shape, (q, k, v), implementation)
        yield from _dropout(bench, shape, (q, k, v), implementation)


def _pair(
    bench: Bench,
    shape: str,
    sides: tuple[Callable[[], Tensor], Callable[[], Tensor]],
    leaves: tuple[Tensor, Tensor, Tensor],
    causal: bool,
) -> Iterator[Case]:
    q = leaves[0]
    rows, length, heads, head = q.shape
    flops = 4 * rows * heads * length * length * head // (2 if causal else 1)
    size = q.numel() * bench.width
    moved = (4 * size, 8 * size)
    yield from bench.pair("attention", shape, sides, leaves, moved, (flops, flops * 5 // 2))


def _backends(
    bench: Bench, qkv: tuple[Tensor, Tensor, Tensor], causal: bool
) -> dict[str, Callable[[], Tensor]]:
    """The backends of torch that accept these operands, each as a call."""
    sides = {}
    for name, backend in BACKENDS.items():

        def call(backend=backend) -> Tensor:
            q, k, v = (tensor.transpose(1, 2) for tensor in qkv)
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)

        try:
            call()
        except RuntimeError:
            continue
        sides[name] = call
    return sides


def _documents(
    bench: Bench, shape: str, qkv: tuple[Tensor, Tensor, Tensor], implementation: str
) -> Iterator[Case]:
    """Four documents a row: ours skips what lies between them, torch takes an additive mask."""
    q, k, v = qkv
    rows, length = q.shape[:2]
    starts = torch.arange(length, device=q.device) // (length // 4) * (length // 4)
    starts_BT = starts.expand(rows, length).contiguous()
    same = starts[:, None] == starts[None, :]
    visible = same & torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    mask = torch.zeros(length, length, dtype=q.dtype, device=q.device)
    mask.masked_fill_(~visible, -math.inf)

    def ours() -> Tensor:
        return ops.attention(q, k, v, document_starts_BT=starts_BT, implementation=implementation)

    def theirs() -> Tensor:
        transposed = (tensor.transpose(1, 2) for tensor in qkv)
        return F.scaled_dot_product_attention(*transposed, mask).transpose(1, 2)

    yield from _pair(bench, f"{shape}, 4 documents, torch mask", (ours, theirs), qkv, True)


def _dropout(
    bench: Bench, shape: str, qkv: tuple[Tensor, Tensor, Tensor], implementation: str
) -> Iterator[Case]:
    """Causal with dropout of the weights."""
    q, k, v = qkv
    keys_B = torch.arange(q.shape[0], device=q.device)
    dropout = ops.AttentionDropout(0.1, keys_B, "bench")

    def ours() -> Tensor:
        return ops.attention(q, k, v, dropout=dropout, implementation=implementation)

    def theirs() -> Tensor:
        transposed = (tensor.transpose(1, 2) for tensor in qkv)
        return F.scaled_dot_product_attention(*transposed, dropout_p=0.1, is_causal=True).transpose(
            1, 2
        )

    yield from _pair(bench, f"{shape}, dropout, torch best", (ours, theirs), qkv, True)
