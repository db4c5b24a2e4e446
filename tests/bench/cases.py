"""What tests/bench/ops.py measures: every op against what a user of plain torch writes for it.

A Case names its two sides and the least bytes and floating-point operations of the formula: each
operand read once and each result written once, forward and backward.

Legend: M tokens, H hidden, F inner width, V vocabulary, B rows, T queries, S keys, N heads, D head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from roots import ops
from tests.bench.measure import Call

Formula = Callable[[], Tensor | tuple[Tensor, ...]]

RATE = 0.1
SITE = "bench"


@dataclass(frozen=True)
class Case:
    """One comparison. `passes` is "forward" or "forward+backward"."""

    op: str
    shape: str
    dtype: torch.dtype
    passes: str
    ours: Call
    torch: Call
    bytes: int
    flops: int = 0


@dataclass(frozen=True)
class Sizes:
    """The sizes of one device: large enough to fill it, small enough for many rounds."""

    tokens: int
    hidden: tuple[int, ...]
    ffn: int
    heads: int
    sequence: int
    vocabulary: int
    batch: int
    head_sizes: tuple[int, ...]


SIZES = {
    "cpu": Sizes(2048, (768, 1024), 3072, 12, 512, 32768, 4, (64,)),
    "cuda": Sizes(16384, (4096, 8192), 14336, 32, 4096, 128256, 4, (64, 128)),
}


@dataclass(frozen=True)
class Bench:
    """Where and in what dtype cases are made."""

    device: str
    dtype: torch.dtype

    @property
    def sizes(self) -> Sizes:
        """The sizes of this device."""
        return SIZES[self.device]

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    def normal(self, *shape: int) -> Tensor:
        """A leaf with a gradient."""
        return torch.randn(*shape, device=self.device).to(self.dtype).requires_grad_()

    def pair(
        self,
        op: str,
        shape: str,
        sides: tuple[Formula, Formula],
        leaves: Sequence[Tensor],
        moved: tuple[int, int],
        flops: tuple[int, int] = (0, 0),
    ) -> Iterator[Case]:
        """The forward case and the forward+backward case; `moved` and `flops`: of each pass."""
        ours, theirs = sides
        with torch.no_grad():
            outputs = ours()
        several = (outputs,) if isinstance(outputs, Tensor) else outputs
        grads = tuple(torch.randn_like(output) for output in several)
        forward = (_without_graph(ours), _without_graph(theirs))
        yield Case(op, shape, self.dtype, "forward", *forward, moved[0], flops[0])
        both = (_with_backward(ours, leaves, grads), _with_backward(theirs, leaves, grads))
        yield Case(op, shape, self.dtype, "forward+backward", *both, sum(moved), sum(flops))


def _without_graph(call: Formula) -> Call:
    def forward() -> None:
        with torch.no_grad():
            call()

    return forward


def _with_backward(call: Formula, leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> Call:
    def step() -> None:
        torch.autograd.grad(call(), leaves, grads)

    return step


def layer_norm(bench: Bench) -> Iterator[Case]:
    """Without and with the residual addition."""
    rows = bench.sizes.tokens
    for hidden in bench.sizes.hidden:
        x, residual = bench.normal(rows, hidden), bench.normal(rows, hidden)
        weight, bias = bench.normal(hidden), bench.normal(hidden)
        size = rows * hidden * bench.width
        shape = f"M {rows} H {hidden}"
        sides = (
            lambda x=x, w=weight, b=bias: ops.layer_norm(x, w, b),
            lambda x=x, w=weight, b=bias: F.layer_norm(x, w.shape, w, b),
        )
        yield from bench.pair("layer_norm", shape, sides, (x, weight, bias), (2 * size, 3 * size))

        def fused(x=x, w=weight, b=bias, r=residual) -> tuple[Tensor, Tensor]:
            return ops.layer_norm(x, w, b, residual=r)

        def plain(x=x, w=weight, b=bias, r=residual) -> tuple[Tensor, Tensor]:
            total = x + r
            return F.layer_norm(total, w.shape, w, b), total

        # Forward reads two and writes two; backward reads two gradients and the sum, writes one.
        moved = (4 * size, 4 * size)
        leaves = (x, residual, weight, bias)
        yield from bench.pair("layer_norm", f"{shape}, residual", (fused, plain), leaves, moved)


def rms_norm(bench: Bench) -> Iterator[Case]:
    """Against torch.nn.functional.rms_norm."""
    rows = bench.sizes.tokens
    for hidden in bench.sizes.hidden:
        x, weight = bench.normal(rows, hidden), bench.normal(hidden)
        size = rows * hidden * bench.width
        sides = (
            lambda x=x, w=weight: ops.rms_norm(x, w),
            lambda x=x, w=weight: F.rms_norm(x, w.shape, w, 1e-5),
        )
        shape = f"M {rows} H {hidden}"
        yield from bench.pair("rms_norm", shape, sides, (x, weight), (2 * size, 3 * size))


def rotary(bench: Bench) -> Iterator[Case]:
    """Half-split over the whole head, as models of transformers write it."""
    sizes = bench.sizes
    for head in sizes.head_sizes:
        x = bench.normal(sizes.batch, sizes.sequence, sizes.heads, head)
        positions = torch.arange(sizes.sequence, device=bench.device)
        cos, sin = ops.rotary_table(positions, head)
        wide_cos, wide_sin = (
            torch.cat((part, part), -1)[:, None].to(bench.dtype) for part in (cos, sin)
        )

        def plain(x=x, cos=wide_cos, sin=wide_sin) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            return x * cos + torch.cat((-second, first), -1) * sin

        sides = (lambda x=x, c=cos, s=sin: ops.rotary(x, c, s), plain)
        size = x.numel() * bench.width
        shape = f"B {sizes.batch} T {sizes.sequence} N {sizes.heads} D {head}"
        yield from bench.pair("rotary", shape, sides, (x,), (2 * size, 2 * size))


def bias_gelu(bench: Bench) -> Iterator[Case]:
    """Both forms."""
    rows, width = bench.sizes.tokens, bench.sizes.ffn
    x, bias = bench.normal(rows, width), bench.normal(width)
    size = rows * width * bench.width
    for form in ("none", "tanh"):
        sides = (
            lambda form=form: ops.bias_gelu(x, bias, form),
            lambda form=form: F.gelu(x + bias, approximate=form),
        )
        shape = f"M {rows} F {width}, {form}"
        yield from bench.pair("bias_gelu", shape, sides, (x, bias), (2 * size, 3 * size))


def swiglu(bench: Bench) -> Iterator[Case]:
    """Without and with bias."""
    rows, width = bench.sizes.tokens, bench.sizes.ffn
    x, bias = bench.normal(rows, 2 * width), bench.normal(2 * width)
    size = rows * width * bench.width
    shape = f"M {rows} F {width}"

    def plain(z: Tensor) -> Tensor:
        gate, up = z.chunk(2, -1)
        return F.silu(gate) * up

    sides = (lambda: ops.swiglu(x), lambda: plain(x))
    yield from bench.pair("swiglu", shape, sides, (x,), (3 * size, 5 * size))
    sides = (lambda: ops.swiglu(x, bias), lambda: plain(x + bias))
    yield from bench.pair("swiglu", f"{shape}, bias", sides, (x, bias), (3 * size, 5 * size))


def bias_dropout_add(bench: Bench) -> Iterator[Case]:
    """Against torch's dropout, whose generator draws the mask."""
    sizes = bench.sizes
    hidden = sizes.hidden[0]
    rows, tokens = sizes.batch, sizes.tokens // sizes.batch
    x, residual = bench.normal(rows, tokens, hidden), bench.normal(rows, tokens, hidden)
    bias = bench.normal(hidden)
    keys = torch.arange(rows, device=bench.device)
    sides = (
        lambda: ops.bias_dropout_add(x, bias, residual, RATE, keys, SITE),
        lambda: residual + F.dropout(x + bias, RATE),
    )
    size = x.numel() * bench.width
    shape = f"M {sizes.tokens} H {hidden}"
    leaves = (x, bias, residual)
    yield from bench.pair("bias_dropout_add", shape, sides, leaves, (3 * size, 2 * size))


def scaled_masked_softmax(bench: Bench) -> Iterator[Case]:
    """Causal, and with a boolean padding mask."""
    sizes = bench.sizes
    rows, heads, length = sizes.batch, sizes.heads, min(sizes.sequence, 1024)
    scores = bench.normal(rows, heads, length, length)
    visible = torch.ones(length, length, dtype=torch.bool, device=bench.device).tril()
    padding = torch.ones(rows, 1, 1, length, dtype=torch.bool, device=bench.device)
    padding[:, :, :, -length // 8 :] = False
    scale = 0.125

    def plain(mask: Tensor) -> Tensor:
        return (scores * scale).masked_fill(~mask, -math.inf).softmax(-1)

    size = scores.numel() * bench.width
    shape = f"B {rows} N {heads} T {length} S {length}"
    sides = (
        lambda: ops.scaled_masked_softmax(scores, None, scale, causal=True),
        lambda: plain(visible),
    )
    moved = (2 * size, 3 * size)
    name = "scaled_masked_softmax"
    yield from bench.pair(name, f"{shape}, causal", sides, (scores,), moved)
    sides = (
        lambda: ops.scaled_masked_softmax(scores, padding, scale),
        lambda: plain(padding),
    )
    yield from bench.pair(name, f"{shape}, padding", sides, (scores,), moved)


def cross_entropy(bench: Bench) -> Iterator[Case]:
    """The mean loss of a language model's head."""
    sizes = bench.sizes
    rows, vocabulary = (
        min(sizes.tokens, 8192) // (4 if bench.device == "cpu" else 1),
        sizes.vocabulary,
    )
    logits = bench.normal(rows, vocabulary)
    labels = torch.randint(vocabulary, (rows,), device=bench.device)
    sides = (
        lambda: ops.cross_entropy(logits, labels).mean(),
        lambda: F.cross_entropy(logits, labels),
    )
    size = logits.numel() * bench.width
    shape = f"M {rows} V {vocabulary}"
    yield from bench.pair("cross_entropy", shape, sides, (logits,), (size, 2 * size))


def check_finite(bench: Bench) -> Iterator[Case]:
    """The gradients of a model: 48 tensors of several sizes."""
    width = bench.sizes.hidden[0]
    shapes = [(width, width), (width,), (4 * width, width), (width,)] * 12
    tensors = [bench.normal(*shape).detach() for shape in shapes]
    size = sum(tensor.nbytes for tensor in tensors)

    def plain() -> Tensor:
        found = torch.stack([tensor.isfinite().all() for tensor in tensors])
        return torch.where(found.all(), -1, (~found).int().argmax())

    shape = f"48 tensors, {size >> 20} MiB"
    yield Case(
        "check_finite",
        shape,
        bench.dtype,
        "forward",
        lambda: ops.check_finite(tensors),
        plain,
        size,
    )


CASES = {
    maker.__name__: maker
    for maker in (
        layer_norm,
        rms_norm,
        rotary,
        bias_gelu,
        swiglu,
        bias_dropout_add,
        scaled_masked_softmax,
        cross_entropy,
        check_finite,
    )
}
