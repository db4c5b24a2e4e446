"""Span corruption: packed text with spans replaced by sentinels, and the spans to be written.

T5 (Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
Transformer", 2020, section 3.1.4 and figure 2). Of L tokens, round(L * density) are noise, in
round(noise / mean span) spans of random lengths between stretches of random lengths:

    text      a b C D e f G h         noise in capitals
    source    a b <0> e f <1> h <end>
    target    <0> C D <1> G <end>

Sentinel k is token F - k, counted down as T5 does. F is data.sentinel_token: null is the last token
of the vocabulary, which then must be larger than the tokenizer's by the number of spans; released
T5 have 28 unused rows above <extra_id_0>, token 32099. No text may hold a sentinel. L is the
largest length for which both sides fit the model (roots/config/spans.py); a text may reach over
ends of documents, as T5's packed text does. The draws are a pure function of (seed, step, place in
the step).

Legend: T sequence length (tokens of a target), S source length, L tokens of text.
"""

from __future__ import annotations

import numpy as np
import torch

from roots.config.spans import SpanPlan
from roots.data.batch import Batch
from roots.data.blend import Blend
from roots.data.indexed import Int64s, Tokens
from roots.data.objectives.rows import sequence_batch
from roots.data.sampler import dropout_keys
from roots.seeding import derive_key, random_bits


def corrupt_spans(
    text: Tokens, plan: SpanPlan, key: int, *, first_sentinel: int, end: int
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
        sentinel = first_sentinel - number
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
        first_sentinel: int,
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
        self._first_sentinel = first_sentinel
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
                first_sentinel=self._first_sentinel,
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
