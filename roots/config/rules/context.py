"""Rules of sequence and context parallelism: what must be divisible, and what they lack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from roots.errors import problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig


def context_cuts_sequence(config: RunConfig) -> Iterator[str]:
    """Every context rank holds as many tokens; in a ring, of an early and of a late part."""
    context, length = config.parallel.context, config.model.sequence_length
    ring = config.parallel.context_method == "ring"
    parts = context * (2 if ring else 1)
    if context == 1 or length % parts == 0:
        return
    why = ", because a ring gives every rank an early and a late one" if ring else ""
    yield problem(
        "parallel.context",
        context,
        f"must cut model.sequence_length={length} into {parts} equal parts{why}",
        f"set model.sequence_length to {max(1, length // parts) * parts}, or parallel.context to "
        f"{_largest_divisor(length // (2 if ring else 1), context)}",
    )


def ulysses_shares_heads(config: RunConfig) -> Iterator[str]:
    """Every context rank attends with as many of the heads that its tensor rank has."""
    parallel, heads = config.parallel, config.model.num_heads
    if parallel.context == 1 or parallel.context_method != "ulysses" or heads % parallel.tensor:
        return
    local = heads // parallel.tensor
    if local % parallel.context:
        yield problem(
            "parallel.context",
            parallel.context,
            f"must divide the {local} heads of a tensor rank (model.num_heads={heads} / "
            f"parallel.tensor={parallel.tensor}) under parallel.context_method=ulysses",
            f"set it to {_largest_divisor(local, parallel.context)}, "
            "or parallel.context_method=ring",
        )


def ring_without_attention_dropout(config: RunConfig) -> Iterator[str]:
    """The kernels draw a mask by positions within the keys that they are given."""
    rate = config.model.attention_dropout
    if _is_ring(config) and rate > 0.0:
        yield problem(
            "model.attention_dropout",
            rate,
            "must be 0 with parallel.context_method=ring, because a mask is drawn by positions "
            "among all keys and a ring has one block of them at a time",
            "set model.attention_dropout=0, or parallel.context_method=ulysses",
        )


def ring_needs_log_sum_exp(config: RunConfig) -> Iterator[str]:
    """A ring merges what attention to single blocks gives."""
    if _is_ring(config) and config.ops.attention == "torch_sdpa":
        yield problem(
            "ops.attention",
            "torch_sdpa",
            "returns no log-sum-exp, by which parallel.context_method=ring merges blocks of keys",
            "set ops.attention=auto, or parallel.context_method=ulysses",
        )


def sequence_cuts_tokens(config: RunConfig) -> Iterator[str]:
    """Sequence parallelism cuts the tokens of a context rank over its tensor ranks."""
    parallel, length = config.parallel, config.model.sequence_length
    if not parallel.sequence:
        return
    if parallel.tensor == 1:
        yield problem(
            "parallel.sequence",
            True,
            "cuts tokens over tensor ranks, but parallel.tensor=1",
            "set parallel.sequence=false, or parallel.tensor to 2 or more",
        )
        return
    parts = parallel.tensor * parallel.context
    if length % parts:
        yield problem(
            "parallel.sequence",
            True,
            f"needs a model.sequence_length that parallel.tensor x parallel.context = {parts} "
            f"divides, not {length}",
            f"set model.sequence_length to {max(1, length // parts) * parts}, "
            "or parallel.sequence=false",
        )


def _is_ring(config: RunConfig) -> bool:
    return config.parallel.context > 1 and config.parallel.context_method == "ring"


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`; 1 if there is none."""
    return max((d for d in range(1, limit + 1) if number % d == 0), default=1)


CONTEXT_RULES = (
    context_cuts_sequence,
    ulysses_shares_heads,
    ring_without_attention_dropout,
    ring_needs_log_sum_exp,
    sequence_cuts_tokens,
)
