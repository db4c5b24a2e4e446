"""From prompts to texts, by whichever way of writing the options and the architecture ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roots.data.objectives.choice import begin_token
from roots.generation.beam import BeamOptions
from roots.generation.continue_beams import continue_by_beams
from roots.generation.generate import check_tokenizer, continue_tokens
from roots.generation.limits import StopReason
from roots.generation.load import LoadedModel
from roots.generation.options import GenerationOptions
from roots.generation.prompts import decode_new, encode_prompts, encode_sources
from roots.generation.write import write_targets
from roots.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class WrittenText:
    """What was written after a prompt, or for a source; `score` is that of beam search alone."""

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    stopped_by: StopReason
    score: float | None = None


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
    check_tokenizer(tokenizer, model.config.model)
    if isinstance(options, GenerationOptions):
        return _sample(model, tokenizer, prompts, options, special_tokens)
    return _search(model, tokenizer, prompts, options, special_tokens)


def _sample(
    model: LoadedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: GenerationOptions,
    special_tokens: bool,
) -> list[WrittenText]:
    decoder = model.decoder
    starts = encode_prompts(tokenizer, prompts, special_tokens=special_tokens)
    results = continue_tokens(decoder, starts, options, end=tokenizer.special.stops)
    texts = [decode_new(tokenizer, ids, found.token_ids) for ids, found in zip(starts, results)]
    return [
        WrittenText(prompt, text, found.token_ids, found.stopped_by)
        for prompt, text, found in zip(prompts, texts, results, strict=True)
    ]


def _search(
    model: LoadedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: BeamOptions,
    special_tokens: bool,
) -> list[WrittenText]:
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
