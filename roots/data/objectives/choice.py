"""From the config to what makes its batches: one objective, one maker."""

from __future__ import annotations

from collections.abc import Sequence

from roots.config.data import DataConfig
from roots.config.run import RunConfig
from roots.config.spans import sentinel_tokens, span_plan
from roots.data.batch import DocumentRules
from roots.data.blend import Blend, Source
from roots.data.loader import BatchMaker
from roots.data.objectives.causal import CausalBatches
from roots.data.objectives.masked import MaskedBatches
from roots.data.objectives.pairs import PairBatches, PairShape
from roots.data.objectives.span_corruption import SpanCorruptionBatches
from roots.data.sampler import Order
from roots.errors import RootsError, problem
from roots.tokenizer.tokenizer import load_tokenizer


def batch_maker(
    config: RunConfig, sources: Sequence[Source], order: Order, *, grouped: bool = True
) -> BatchMaker:
    """Return what makes the micro-batches of `config.objective` from `sources`.

    order: sample 0 of step 0 is its first; its seed is that of all that is drawn;
    grouped: pairs may be sorted by length; not in an evaluation, which reads some batches alone.
    Raises RootsError for data that does not fit the model or the objective.
    """
    if config.objective == "pairs":
        group_batches = config.data.group_batches if grouped else 1
        return _pairs(config, sources, order, group_batches)
    if config.objective == "span_corruption":
        return _span_corruption(config, sources, order)
    if config.objective == "masked":
        return _masked(config, sources, order)
    return CausalBatches(
        _blend(config, sources, order, config.model.sequence_length),
        global_batch_size=config.training.global_batch_size,
        rules=document_rules(config.data),
        seed=order.seed,
    )


def document_rules(data: DataConfig) -> DocumentRules:
    """Return what the config says about document boundaries."""
    return DocumentRules(
        separate_documents=data.separate_documents,
        reset_positions=data.reset_positions,
        mask_document_end=data.mask_document_end,
    )


def begin_token(data: DataConfig, end: int) -> int:
    """Return the token that an encoder-decoder writes after; `end` is the end of document."""
    return end if data.begin_token is None else data.begin_token


def _pairs(
    config: RunConfig, sources: Sequence[Source], order: Order, group_batches: int
) -> PairBatches:
    model, data = config.model, config.data
    shape = PairShape(model.source_tokens, model.sequence_length, data.pad_multiple)
    return PairBatches(
        sources,
        num_samples=order.num_samples,
        first=order.first,
        global_batch_size=config.training.global_batch_size,
        shape=shape,
        begin=begin_token(data, _end_of_document(config, sources)),
        seed=order.seed,
        vocab_size=model.vocab_size,
        group_batches=group_batches,
        cache_directory=data.cache_directory,
    )


def _span_corruption(
    config: RunConfig, sources: Sequence[Source], order: Order
) -> SpanCorruptionBatches:
    model, plan, sentinels = config.model, span_plan(config), sentinel_tokens(config)
    blend = _blend(config, sources, order, plan.text_length, reserved=sentinels)
    end = _end_of_document(config, sources)
    begin = begin_token(config.data, end)
    for use, token in (("ends a document", end), ("begins a target", begin)):
        if token in sentinels:
            rule = f"makes {sentinels[0]} to {sentinels[-1]} hide spans, of which {token} {use}"
            fix = "set it to the first sentinel of the tokenizer"
            raise RootsError(problem("data.sentinel_token", sentinels[-1], rule, fix))
    return SpanCorruptionBatches(
        blend,
        plan,
        global_batch_size=config.training.global_batch_size,
        shape=(model.source_tokens, model.sequence_length),
        first_sentinel=sentinels[-1],
        begin=begin,
        end=end,
        seed=order.seed,
    )


def _masked(config: RunConfig, sources: Sequence[Source], order: Order) -> MaskedBatches:
    model, data = config.model, config.data
    reserved = 1 if data.mask_token is None else 0
    text_size = model.vocab_size - reserved
    return MaskedBatches(
        _blend(
            config,
            sources,
            order,
            model.sequence_length,
            reserved=range(text_size, model.vocab_size),
        ),
        global_batch_size=config.training.global_batch_size,
        rules=document_rules(data),
        density=data.noise_density,
        mask=model.vocab_size - 1 if data.mask_token is None else data.mask_token,
        end=_end_of_document(config, sources),
        text_size=text_size,
        seed=order.seed,
    )


def _blend(
    config: RunConfig,
    sources: Sequence[Source],
    order: Order,
    sequence_length: int,
    *,
    reserved: range = range(0),
) -> Blend:
    return Blend(
        sources,
        sequence_length=sequence_length,
        num_samples=order.num_samples,
        first=order.first,
        seed=order.seed,
        vocab_size=config.model.vocab_size,
        reserved=reserved,
        cache_directory=config.data.cache_directory,
    )


def _end_of_document(config: RunConfig, sources: Sequence[Source]) -> int:
    """Return the token that ends a document, from the data or the tokenizer.

    Raises RootsError where neither says it.
    """
    for source in sources:
        if source.indexed.description is not None:
            return source.indexed.description.end_of_document
    if config.data.tokenizer is not None:
        return load_tokenizer(config.data.tokenizer).end_of_document
    rule = (
        f"is needed for the end-of-document token, which {sources[0].indexed.prefix} does not say"
    )
    fix = "set it to the folder of the tokenizer, or make the data by `roots preprocess`"
    raise RootsError(problem("data.tokenizer", None, rule, fix))
