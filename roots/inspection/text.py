"""The findings of an inspection as lines for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

# Heads and sites that are told by name; the page has all.
MOST_NAMED = 4


def text_lines(found: dict[str, Any]) -> Iterator[str]:
    """A line or a few for every part, with a label each."""
    yield f"checkpoint  {found['checkpoint']}"
    yield from _losses(found)
    for name, lens in found["lenses"].items():
        if lens is not None:
            yield f"{name + ' lens':12}{' '.join(map(_number, lens['losses']))} nats, by block"
    yield from _heads(found["heads"])
    residual = found["residual"]
    yield f"residual    {' '.join(map(_number, residual['norms']))} long, by block"
    for row in found["experts"]:
        yield (
            f"experts     block {row['block']}: largest load {_number(row['largest'])} of an even "
            f"one, entropy of the load {_number(row['load_entropy'])}, of a token "
            f"{_number(row['entropy'])}"
        )
    yield from _overflow(found["overflow"])


def nearest_lines(found: dict[str, Any], tokens: list[int]) -> Iterator[str]:
    """A line for each of `tokens`: the others whose vectors lie nearest."""
    words = found["vocabulary"]
    for token in tokens:
        others = ", ".join(
            f"{words[int(each)]!r} {_number(cosine)}" for each, cosine in found["nearest"][token]
        )
        yield f"nearest     {words[token]!r}: {others}"


def _losses(found: dict[str, Any]) -> Iterator[str]:
    losses = found["losses"]
    yield (
        f"loss        {_number(losses['mean'])} nats per token, perplexity "
        f"{_number(losses['perplexity'])}, of {losses['tokens']:,} tokens"
    )
    costs = [(cost, at) for at, cost in enumerate(losses["of_tokens"]) if cost is not None]
    if costs:
        cost, at = max(costs)
        words, tokens = found["vocabulary"], found["tokens"]
        guess, chance = losses["predictions"][at - 1][0]
        yield (
            f"dearest     {words[tokens[at]]!r} at token {at}: {cost:.4f} nats; {words[guess]!r} "
            f"was likeliest, with {_number(chance)}"
        )


def _heads(heads: dict[str, Any]) -> Iterator[str]:
    first, again = heads["losses"]
    yield (
        f"repeated    {heads['length']} random tokens cost {_number(first)} nats each, and "
        f"{_number(again)} when they come again"
    )
    for kind in heads["scores"]:
        named = [each for each in heads["named"] if each["kind"] == kind]
        told = [
            f"block {each['block']} head {each['head']} ({each['score']:.2f})"
            for each in named[:MOST_NAMED]
        ]
        rest = len(named) - len(told)
        more = [f"and {rest} more"] if rest else []
        yield f"{kind + ' ':12}{', '.join([*told, *more]) or 'no head'}"


def _overflow(overflow: dict[str, Any]) -> Iterator[str]:
    sites = overflow["sites"]
    if overflow["overflows"]:
        first = overflow["overflows"][0]
        value = next(each["largest"] for each in sites if each["site"] == first)
        size = "infinite" if value is None else f"{value:,.0f}"
        yield (
            f"fp16        would overflow at {len(overflow['overflows'])} of {len(sites)} sites, "
            f"first at {first}: {size}, and 65,504 is the largest number"
        )
        return
    # All are finite, or one would overflow.
    top = max(sites, key=lambda each: float(each["largest"]))
    room = math.log2(1 / top["share"]) if top["share"] else math.inf
    yield (
        f"fp16        largest value {_number(top['largest'])} at {top['site']}, {room:.1f} "
        "doublings below 65,504"
    )
    close = overflow["close"]
    if close:
        more = f" and {len(close) - 1} more" if close[1:] else ""
        yield f"            within a factor of 4: {close[0]}{more}"


def _number(value: float | None) -> str:
    """Four digits that say something; a word for what is not finite."""
    if value is None:
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
