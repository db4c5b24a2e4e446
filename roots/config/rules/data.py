"""Rules of what is learned from the data: objectives, special tokens, lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from roots.config.spans import sentinel_tokens
from roots.errors import problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig

_OBJECTIVES = {
    "decoder": ("causal",),
    "encoder_decoder": ("span_corruption", "pairs"),
    "encoder": ("masked",),
}
_SHORTEST_CORRUPTED = 3


def objective_fits_architecture(config: RunConfig) -> Iterator[str]:
    """Each architecture learns what its attention allows."""
    architecture, objective = config.model.architecture, config.data.objective
    fitting = _OBJECTIVES[architecture]
    if objective is not None and objective not in fitting:
        others = [name for name, known in _OBJECTIVES.items() if objective in known]
        yield problem(
            "data.objective",
            objective,
            f"must be {' or '.join(fitting)} with model.architecture={architecture}",
            f"set it to {fitting[0]}, or model.architecture={others[0]}",
        )


def special_tokens_in_vocabulary(config: RunConfig) -> Iterator[str]:
    """The model has an embedding for every token that it reads."""
    size = config.model.vocab_size
    for name, value in (
        ("begin_token", config.data.begin_token),
        ("mask_token", config.data.mask_token),
        ("sentinel_token", config.data.sentinel_token),
    ):
        if value is not None and value >= size:
            yield problem(
                f"data.{name}",
                value,
                f"must be below model.vocab_size={size}",
                "set it to a token of the tokenizer, or raise model.vocab_size",
            )


def padding_of_pairs(config: RunConfig) -> Iterator[str]:
    """Only pairs are padded, and stages of a pipeline agree on shapes once."""
    multiple = config.data.pad_multiple
    if multiple is None:
        return
    if config.objective != "pairs":
        rule = f"has no effect with data.objective={config.objective}, whose rows are full"
        yield problem("data.pad_multiple", multiple, rule, "set data.pad_multiple=null")
    elif config.parallel.pipeline > 1:
        rule = f"must be null with parallel.pipeline={config.parallel.pipeline}, whose stages "
        rule += "agree on the shapes of batches once"
        fix = "set data.pad_multiple=null, or parallel.pipeline=1"
        yield problem("data.pad_multiple", multiple, rule, fix)


def grouping_needs_padding(config: RunConfig) -> Iterator[str]:
    """Batches of equal lengths save nothing where all are padded alike."""
    data = config.data
    if data.group_batches > 1 and data.pad_multiple is None:
        rule = "has no effect while data.pad_multiple=null"
        fix = "set data.pad_multiple to 8, or data.group_batches=1"
        yield problem("data.group_batches", data.group_batches, rule, fix)


def room_for_spans(config: RunConfig) -> Iterator[str]:
    """A corrupted text has at least a token, a sentinel and an end on both sides."""
    model = config.model
    if config.objective != "span_corruption":
        return
    for name, value in (
        ("source_length", model.source_tokens),
        ("sequence_length", model.sequence_length),
    ):
        if value < _SHORTEST_CORRUPTED:
            rule = f"must be at least {_SHORTEST_CORRUPTED} with data.objective=span_corruption"
            yield problem(f"model.{name}", value, rule, f"set it to {_SHORTEST_CORRUPTED} or more")


def sentinels_mean_nothing_else(config: RunConfig) -> Iterator[str]:
    """The tokens that hide spans are counted down from the first, and stand for spans alone."""
    model, data = config.model, config.data
    fits = min(model.source_tokens, model.sequence_length) >= _SHORTEST_CORRUPTED
    if config.objective != "span_corruption" or data.sentinel_token is None or not fits:
        return
    tokens = sentinel_tokens(config)
    if tokens.start < 0:
        rule = f"must be {len(tokens) - 1} or more, because a sample has {len(tokens)} spans and "
        rule += "each is hidden by a token below that of the one before"
        fix = "set it to the first sentinel of the tokenizer, or to null"
        yield problem("data.sentinel_token", data.sentinel_token, rule, fix)
    elif data.begin_token is not None and data.begin_token in tokens:
        rule = f"is one of the tokens {tokens[0]} to {tokens[-1]} that hide spans"
        fix = "set it to another token, or data.sentinel_token to the tokenizer's first sentinel"
        yield problem("data.begin_token", data.begin_token, rule, fix)


DATA_RULES: tuple[Callable[[RunConfig], Iterable[str]], ...] = (
    objective_fits_architecture,
    special_tokens_in_vocabulary,
    padding_of_pairs,
    grouping_needs_padding,
    room_for_spans,
    sentinels_mean_nothing_else,
)
