"""Loss of an encoder-decoder on pairs, and its own texts against the targets.

Legend: B pairs of a batch, S source tokens, T target tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from roots.data.objectives.rows import sequence_batch
from roots.errors import RootsError, problem
from roots.evaluation.likelihood import perplexity_of
from roots.evaluation.texts import TextScores, score_texts
from roots.generation.beam import BeamOptions
from roots.generation.generate import check_tokenizer
from roots.generation.prompts import encode_sources
from roots.generation.write import write_targets
from roots.models.encoder_decoder import EncoderDecoder
from roots.tokenizer.tokenizer import Tokenizer

Pair = tuple[str, str]


@dataclass(frozen=True)
class PairScores:
    """What a model knows of pairs.

    loss:       mean of -log p(token | source, tokens before it), nats a target token, ends included
    perplexity: exp(loss)
    tokens:     target tokens predicted
    texts:      scores of what it writes itself
    written:    that, in the order of the pairs
    """

    pairs: int
    loss: float
    perplexity: float
    tokens: int
    texts: TextScores
    written: tuple[str, ...]


def evaluate_pairs(
    model: EncoderDecoder,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    options: BeamOptions,
    *,
    begin: int,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> PairScores:
    """Score `model` on pairs of texts; `begin` is the token that a decoder writes after.

    Texts longer than the model takes are cut for the loss, as in training; what the model writes is
    compared with whole targets. `progress` is called with the pairs written so far.
    Raises RootsError for no pairs, a tokenizer of another vocabulary, and without sacrebleu.
    """
    check_tokenizer(tokenizer, model.model)
    if not pairs:
        raise RootsError(problem("pairs", 0, "there is nothing to score", "give some pairs"))
    # Before the long work, so that a missing package is told at once.
    score_texts(["a"], ["a"])
    end, stops = tokenizer.end_of_document, tokenizer.special.stops
    sources = encode_sources(tokenizer, [source for source, _ in pairs])
    texts = tokenizer.encode_batch([target for _, target in pairs])
    targets = [[*ids, end] for ids in texts]
    nats, tokens = total_loss(model, sources, targets, begin=begin, batch_size=batch_size)
    written: list[str] = []
    for start in range(0, len(pairs), 8 * batch_size):
        some = sources[start : start + 8 * batch_size]
        results = write_targets(model, some, options, begin=begin, end=stops, batch_size=batch_size)
        written += [tokenizer.decode(result.token_ids) for result in results]
        if progress is not None:
            progress(len(written))
    scores = score_texts(written, [target for _, target in pairs])
    loss = nats / tokens
    return PairScores(len(pairs), loss, perplexity_of(loss), tokens, scores, tuple(written))


def total_loss(
    model: EncoderDecoder,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    begin: int,
    batch_size: int,
) -> tuple[float, int]:
    """Sum of the losses of all target tokens in nats, and how many they are."""
    limits = (model.model.source_tokens, model.model.sequence_length)
    device = model.embedding.tokens.weight.device
    was_training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    order = sorted(range(len(sources)), key=lambda number: len(targets[number]))
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            sides = [
                [np.array(side[number][:limit]) for number in numbers]
                for side, limit in zip((sources, targets), limits, strict=True)
            ]
            shape = (max(map(len, sides[0])), max(map(len, sides[1])))
            keys = [0] * len(numbers)
            batch = sequence_batch(sides[0], sides[1], keys, begin=begin, shape=shape)
            counted_BT = (batch.loss_weights_BT > 0).float()
            loss = model(
                batch.tokens_BT.to(device),
                batch.source_BS.to(device),
                batch.document_starts_BT.to(device),
                batch.source_lengths_B.to(device),
                batch.dropout_keys_B.to(device),
                batch.labels_BT.to(device),
                counted_BT.to(device),
            )
            nats += float(loss) * len(numbers)
            tokens += int(counted_BT.sum())
    model.train(was_training)
    return nats, tokens
