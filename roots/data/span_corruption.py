"""Span corruption: packed text with spans replaced by sentinels, and the spans to be written.

T5 (Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
Transformer", 2020, section 3.1.4 and figure 2). Of L tokens, round(L * density) are noise, in
round(noise / mean span) spans of random lengths between stretches of random lengths:

    text      a b C D e f G h         noise in capitals
    source    a b <0> e f <1> h <end>
    target    <0> C D <1> G <end>

Sentinel k is token vocab_size - 1 - k, counted from the top as T5 does (whose released vocabulary
has 28 unused rows above them), so the model's vocabulary must be larger than the tokenizer's by the
number of spans. L is the largest length for which both sides fit
the model; a text may reach over ends of documents, as T5's packed text does. The draws are a pure
function of (seed, step, place in the step).

Legend: T sequence length (tokens of a target), S source length, L tokens of text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from roots.data.batch import Batch
from roots.data.blend import Blend
from roots.data.indexed import Int64s, Tokens
from roots.data.rows import sequence_batch
from roots.data.sampler import dropout_keys
from roots.errors import RootsError, problem
from roots.seeding import derive_key, random_bits


@dataclass(frozen=True)
class SpanPlan:
    """How many tokens of text make a sample, and how many of them are noise, in how many spans."""

    text_length: int
    noise_tokens: int
    spans: int

    @property
    def source_length(self) -> int:
        """Text that stays, one sentinel a span, end of document."""
        return self.text_length - self.noise_tokens + self.spans + 1

    @property
    def target_length(self) -> int:
        """Noise, one sentinel a span, end of document."""
        return self.noise_tokens + self.spans + 1


def plan_spans(
    source_length: int, sequence_length: int, density: float, mean_span: float
) -> SpanPlan:
    """Return the plan for the longest text whose source and target fit into these lengths.

    Raises RootsError where not even two tokens fit.
    """
    best = None
    # A text is at most this long, since what is not noise stays.
    for length in range(2, round((source_length + sequence_length) / (1 - density)) + 1):
        noise = min(max(round(length * density), 1), length - 1)
        spans = min(max(round(noise / mean_span), 1), noise, length - noise)
        plan = SpanPlan(length, noise, spans)
        if plan.source_length <= source_length and plan.target_length <= sequence_length:
            best = plan
    if best is None:
        rule = "must leave room for a token, a sentinel and the end in source and target"
        value = f"{source_length} and {sequence_length}"
        fix = "set both to 3 or more"
        raise RootsError(problem("model.source_length and sequence_length", value, rule, fix))
    return best


def corrupt_spans(
    text: Tokens, plan: SpanPlan, key: int, *, vocab_size: int, end: int
) -> tuple[Int64s, Int64s]:
    """Return source and target of `plan.text_length` tokens of text; the draws follow from `key`.

    The text begins with a stretch that stays and ends with a span, as in T5.
    """
    kept = _random_parts(plan.text_length - plan.noise_tokens, plan.spans, derive_key(key, "kept"))
    noise = _random_parts(plan.noise_tokens, plan.spans, derive_key(key, "noise"))
    source: list[int] = []
    target: list[int] = []
    position = 0
    for number, (stay, leave) in enumerate(zip(kept, noise, strict=True)):
        sentinel = vocab_size - 1 - number
        middle, last = position + stay, position + stay + leave
        source += [*text[position:middle].tolist(), sentinel]
        target += [sentinel, *text[middle:last].tolist()]
        position = last
    source.append(end)
    target.append(end)
    return np.array(source, dtype=np.int64), np.array(target, dtype=np.int64)


def _random_parts(total: int, parts: int, key: int) -> list[int]:
    """Cut `total` into `parts` positive lengths, every way of cutting equally likely."""
    bits = random_bits(key, torch.arange(total - 1))
    cuts = torch.sort(torch.argsort(bits, stable=True)[: parts - 1]).values + 1
    bounds = [0, *cuts.tolist(), total]
    return [stop - start for start, stop in zip(bounds, bounds[1:])]


class SpanCorruptionBatches:
    """Micro-batches of corrupted packed text."""

    def __init__(
        self,
        blend: Blend,
        plan: SpanPlan,
        *,
        global_batch_size: int,
        shape: tuple[int, int],
        vocab_size: int,
        begin: int,
        end: int,
        seed: int,
    ) -> None:
        """Keep what stays the same; the samples of `blend` have plan.text_length + 1 tokens.

        shape: (S, T) of the batches; begin: the token from which the decoder starts to write;
        end: the token that ends source and target.
        """
        self._blend = blend
        self._plan = plan
        self._global_batch_size = global_batch_size
        self._shape = shape
        self._vocab_size = vocab_size
        self._begin = begin
        self._end = end
        self._seed = seed

    def make(self, step: int, places: tuple[int, ...]) -> Batch:
        """Read and corrupt the samples at `places` of step `step`."""
        first = step * self._global_batch_size
        sides = [
            corrupt_spans(
                # The last token is the first of the next sample.
                self._blend[first + place].tokens[:-1],
                self._plan,
                derive_key(self._seed, "spans", step, place),
                vocab_size=self._vocab_size,
                end=self._end,
            )
            for place in places
        ]
        return sequence_batch(
            [source for source, _ in sides],
            [target for _, target in sides],
            dropout_keys(self._seed, step, places),
            begin=self._begin,
            shape=self._shape,
        )
