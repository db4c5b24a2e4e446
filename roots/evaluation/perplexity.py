"""Perplexity of a decoder on a whole dataset."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from roots.config.model import ModelConfig
from roots.data.batch import DocumentRules
from roots.data.indexed import IndexedDataset
from roots.data.windows import iterate_windows
from roots.errors import RootsError, problem
from roots.evaluation.likelihood import perplexity_of
from roots.models.decoder import Decoder
from roots.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Perplexity:
    """What a model knows of a dataset.

    loss:          mean of -log p(token | tokens before it in its window), nats per token
    perplexity:    exp(loss)
    tokens:        tokens predicted
    bits_per_byte: total loss in bits / bytes of the predicted text; unlike the others comparable
                   between tokenizers. None without a tokenizer
    """

    loss: float
    perplexity: float
    tokens: int
    bits_per_byte: float | None


def evaluate_perplexity(
    decoder: Decoder,
    indexed: IndexedDataset,
    *,
    rules: DocumentRules,
    batch_size: int,
    tokenizer: Tokenizer | None = None,
    progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """Predict every token of `indexed` but the first, in consecutive windows without overlap.

    rules:      what a document boundary means, as in training
    batch_size: windows at a time; where documents count alone, the positions of so many at most
    tokenizer:  counts the bytes of the text; must be the one that made the dataset
    progress:   called with the tokens predicted so far, after every batch
    Raises RootsError for a dataset without a token to predict, of another tokenizer, or with token
    ids beyond the model's vocabulary.
    """
    num_bytes = None if tokenizer is None else predicted_bytes(indexed, tokenizer, rules)
    device = decoder.embedding.tokens.weight.device
    was_training = decoder.training
    decoder.eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for window in iterate_windows(
            indexed,
            sequence_length=decoder.model.sequence_length,
            batch_size=batch_size,
            vocab_size=decoder.model.vocab_size,
            rules=rules,
            documents_alone=documents_alone(decoder.model, rules),
        ):
            batch = window.batch
            loss = decoder(
                batch.tokens_BT.to(device),
                batch.document_starts_BT.to(device),
                batch.dropout_keys_B.to(device),
                batch.labels_BT.to(device),
                batch.loss_weights_BT.to(device),
            )
            total += float(loss) * len(batch.tokens_BT)
            tokens += window.predicted_tokens
            if progress is not None:
                progress(tokens)
    decoder.train(was_training)
    if tokens == 0:
        rule = "holds no token that is to be predicted"
        raise RootsError(problem("data", indexed.prefix, rule, "give a dataset of more text"))
    return summarise(total, tokens, num_bytes)


def documents_alone(model: ModelConfig, rules: DocumentRules) -> bool:
    """Whether the loss of a document is the same in a row of its own as behind other documents.

    The vectors of learned and sinusoidal positions say where in the row a token stands; the other
    encodings know only of distances within the document.
    """
    absolute = model.position in ("learned", "sinusoidal")
    return rules.separate_documents and (rules.reset_positions or not absolute)


def summarise(total_nats: float, tokens: int, num_bytes: int | None) -> Perplexity:
    """Turn the summed loss of `tokens` predictions over `num_bytes` of text into the measures."""
    loss = total_nats / tokens
    bits = total_nats / math.log(2) / num_bytes if num_bytes else None
    return Perplexity(loss, perplexity_of(loss), tokens, bits)


def predicted_bytes(indexed: IndexedDataset, tokenizer: Tokenizer, rules: DocumentRules) -> int:
    """UTF-8 bytes of the text that is predicted; special tokens have none.

    Raises RootsError if the dataset's side file names another tokenizer.
    """
    check_made_by(indexed, tokenizer)
    num_bytes = 0
    for document in range(indexed.num_documents):
        tokens = indexed[document]
        # Nothing comes before the first token, and with this rule none before any document's.
        first = 1 if document == 0 or rules.mask_document_end else 0
        num_bytes += len(tokenizer.decode(tokens[first:].tolist()).encode())
    return num_bytes


def check_made_by(
    indexed: IndexedDataset,
    tokenizer: Tokenizer,
    fix: str = "give the tokenizer of the dataset, or preprocess the text with the model's",
) -> None:
    """Raise RootsError, with `fix`, if the dataset's side file names another tokenizer."""
    made_by = indexed.description.tokenizer if indexed.description else tokenizer.fingerprint
    if not tokenizer.has_ids_of(made_by):
        rule = f"was made with another tokenizer (fingerprint {made_by})"
        raise RootsError(problem("data", indexed.prefix, rule, fix))
