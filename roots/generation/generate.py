"""Continuing prompts, as many at once as fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from roots.config.model import ModelConfig
from roots.errors import RootsError, problem
from roots.generation.batching import Batch, Request
from roots.generation.limits import Ends, StopReason, all_ends, check_lengths
from roots.generation.network import Network
from roots.generation.options import GenerationOptions
from roots.generation.prompts import decode_new, encode_prompts
from roots.models.decoder import Decoder
from roots.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Continuation:
    """What was added to one prompt. The token that stopped it is not in it."""

    token_ids: tuple[int, ...]
    stopped_by: StopReason


def generate(
    decoder: Decoder, tokenizer: Tokenizer, prompts: Sequence[str], options: GenerationOptions
) -> list[str]:
    """The text that continues each prompt (without the prompt).

    An empty prompt starts a document. Raises RootsError for a prompt longer than learned positions
    reach and for a tokenizer of another vocabulary.
    """
    check_tokenizer(tokenizer, decoder.model)
    token_ids = encode_prompts(tokenizer, prompts)
    found = continue_tokens(decoder, token_ids, options, end=tokenizer.special.stops)
    return [
        decode_new(tokenizer, ids, continuation.token_ids)
        for ids, continuation in zip(token_ids, found, strict=True)
    ]


def check_tokenizer(tokenizer: Tokenizer, model: ModelConfig) -> None:
    """Raise RootsError if `tokenizer` knows tokens that `model` does not."""
    if tokenizer.vocab_size > model.vocab_size:
        rule = f"must not exceed the model's vocab_size of {model.vocab_size}"
        fix = "use the tokenizer that the model was trained with"
        raise RootsError(problem("tokenizer vocab_size", tokenizer.vocab_size, rule, fix))


def continue_tokens(
    decoder: Decoder, prompts: Sequence[Sequence[int]], options: GenerationOptions, *, end: Ends
) -> list[Continuation]:
    """Continue prompts of token ids until `end`, the length asked for, or the last position.

    Dropout is off meanwhile. The n-th prompt has the seed of the options and n, so that a prompt
    given twice is continued in two ways. `stop` of the options, which needs texts, plays no part.
    Raises RootsError for a prompt longer than learned positions reach.
    """
    check_lengths(prompts, decoder.model)
    ends = all_ends(end)
    requests = [
        Request(tuple(prompt), with_seed_of(options, number), ends)
        for number, prompt in enumerate(prompts)
    ]
    was_training = decoder.training
    decoder.eval()
    try:
        return run_all(Batch(Network.of(decoder)), requests)
    finally:
        decoder.train(was_training)


def with_seed_of(options: GenerationOptions, number: int) -> GenerationOptions:
    """The options of the prompt of that number among several."""
    return replace(options, seed=(options.seed + number) % 2**64) if number else options


def run_all(
    batch: Batch, requests: Sequence[Request], report: Callable[[int], None] | None = None
) -> list[Continuation]:
    """Run an idle batch until all requests are answered; `report` hears how many are."""
    numbers = {batch.add(request): number for number, request in enumerate(requests)}
    new: list[list[int]] = [[] for _ in requests]
    reasons: dict[int, StopReason] = {}
    while not batch.idle:
        for event in batch.step():
            number = numbers[event.ticket]
            if event.token_id is not None:
                new[number].append(event.token_id)
            if event.stopped_by is not None:
                reasons[number] = event.stopped_by
                if report is not None:
                    report(len(reasons))
    return [Continuation(tuple(ids), reasons[number]) for number, ids in enumerate(new)]
