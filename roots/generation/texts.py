"""From prompts to texts, by whichever way of writing the options and the architecture ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from roots.data.objectives.choice import begin_token
from roots.generation.batching import Batch, Likelihood
from roots.generation.beam import BeamOptions
from roots.generation.continue_beams import continue_by_beams
from roots.generation.generate import check_tokenizer, with_seed_of
from roots.generation.layout import copies, of_all_copies
from roots.generation.limits import StopReason, check_lengths
from roots.generation.load import LoadedModel
from roots.generation.network import Network
from roots.generation.options import GenerationOptions
from roots.generation.prompts import decode_new, encode_prompts, encode_sources
from roots.generation.text_batch import TextBatch, TextEvent
from roots.generation.write import write_targets
from roots.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class WrittenText:
    """What was written after a prompt, or for a source.

    token_ids:   written; where a text ended at one of `stop`, those that spell it are the last
    score:       that of beam search alone
    likelihoods: of the written tokens, where they were asked for
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    stopped_by: StopReason
    score: float | None = None
    likelihoods: tuple[Likelihood, ...] | None = None


def write_texts(
    model: LoadedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: GenerationOptions | BeamOptions,
    *,
    special_tokens: bool = True,
) -> list[WrittenText]:
    """Continue prompts, or write the target of each where the model is an encoder-decoder.

    special_tokens: names of special tokens in a prompt are these tokens, not plain text

    Raises RootsError for a prompt that is too long, and for a tokenizer of another vocabulary.
    """
    if isinstance(options, GenerationOptions):
        network = Network.of(model.decoder)
        return sample_texts(network, tokenizer, prompts, options, special_tokens=special_tokens)
    return search_texts(model, tokenizer, prompts, options, special_tokens=special_tokens)


def sample_texts(
    network: Network,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: GenerationOptions,
    *,
    special_tokens: bool = True,
    hear: Callable[[int, TextEvent], None] | None = None,
) -> list[WrittenText]:
    """Continue prompts on all ranks of the network's layout; each copy of the model takes a share.

    hear: called with the number of the prompt and what was added to it, on the ranks that write it
    Every rank has all texts. Raises RootsError as `write_texts`.
    Communication: that of Network.read, and an all-gather of the texts between the copies.
    """
    check_tokenizer(tokenizer, network.model)
    starts = encode_prompts(tokenizer, prompts, special_tokens=special_tokens)
    check_lengths(starts, network.model)
    told = write_own(network, tokenizer, starts, options, hear)
    written = {number: _written(prompts[number], events) for number, events in told.items()}
    return of_all_copies(network.mesh, written)


def write_own(
    network: Network,
    tokenizer: Tokenizer,
    starts: Sequence[Sequence[int]],
    options: GenerationOptions,
    hear: Callable[[int, TextEvent], None] | None = None,
) -> dict[int, list[TextEvent]]:
    """Continue this copy's share of some prompts of token ids -> the events of each, by its number.

    Options and `hear` are those of `sample_texts`. Raises RootsError as Batch does.
    """
    copy, count = copies(network.mesh)
    batch = TextBatch(Batch(network), tokenizer)
    own = range(copy, len(starts), count)
    numbers = {batch.add(starts[each], with_seed_of(options, each)): each for each in own}
    told: dict[int, list[TextEvent]] = {number: [] for number in own}
    for event in batch.run():
        number = numbers[event.ticket]
        told[number].append(event)
        if hear is not None:
            hear(number, event)
    return told


def tokens_of(events: Iterable[TextEvent]) -> tuple[int, ...]:
    """The tokens that a text's events have added to it."""
    return tuple(each.token_id for each in events if each.token_id is not None)


def _written(prompt: str, events: Sequence[TextEvent]) -> WrittenText:
    likelihoods = tuple(each.likelihood for each in events if each.likelihood is not None)
    reason = events[-1].stopped_by
    assert reason is not None, "a text that is done has ended"
    text = "".join(each.text for each in events)
    return WrittenText(prompt, text, tokens_of(events), reason, likelihoods=likelihoods or None)


def search_texts(
    model: LoadedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: BeamOptions,
    *,
    special_tokens: bool = True,
) -> list[WrittenText]:
    """As `write_texts` by beam search, on all ranks that share the model; each has all texts."""
    check_tokenizer(tokenizer, model.config.model)
    stops = tokenizer.special.stops
    if model.config.model.architecture == "encoder_decoder":
        begin = begin_token(model.config.data, tokenizer.end_of_document)
        sources = encode_sources(tokenizer, prompts, special_tokens=special_tokens)
        results = write_targets(model.encoder_decoder, sources, options, begin=begin, end=stops)
        # A target is a text of its own, of which nothing is given.
        texts = [tokenizer.decode(found.token_ids) for found in results]
    else:
        starts = encode_prompts(tokenizer, prompts, special_tokens=special_tokens)
        results = continue_by_beams(model.decoder, starts, options, end=stops)
        texts = [decode_new(tokenizer, ids, found.token_ids) for ids, found in zip(starts, results)]
    return [
        WrittenText(prompt, text, tuple(found.token_ids), found.stopped_by, found.score)
        for prompt, text, found in zip(prompts, texts, results, strict=True)
    ]
