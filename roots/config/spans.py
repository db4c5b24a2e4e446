"""What the config says of span corruption: how text is cut, and which tokens hide the spans.

See roots/data/objectives/span_corruption.py for what is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from roots.errors import RootsError, problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig


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


def span_plan(config: RunConfig) -> SpanPlan:
    """Return the plan of a run. Raises RootsError where not even two tokens fit."""
    lengths = (config.model.source_tokens, config.model.sequence_length)
    return plan_spans(*lengths, config.data.noise_density, config.data.mean_span)


def sentinel_tokens(config: RunConfig) -> range:
    """Return the tokens that hide the spans of a sample, the first span's last.

    Raises RootsError where not even two tokens fit.
    """
    named = config.data.sentinel_token
    first = config.model.vocab_size - 1 if named is None else named
    return range(first + 1 - span_plan(config).spans, first + 1)
