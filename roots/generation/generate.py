"""Continuing prompts, in one batch, with or without a key/value cache.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from roots.config.model import ModelConfig
from roots.errors import RootsError, problem
from roots.generation.limits import (
    Ends,
    StopReason,
    all_ends,
    check_lengths,
    position_limit,
    room_after,
)
from roots.generation.prompts import decode_new, encode_prompts
from roots.generation.sampling import SamplingOptions, choose_tokens
from roots.models.attention.cache import KVCache
from roots.models.decoder import Decoder
from roots.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How prompts are continued.

    max_new_tokens: tokens added at most
    sampling:       how each is chosen
    seed:           of the choice; equal seed, prompts and options give equal text
    use_cache:      keep keys and values instead of computing them again for every token
    Raises RootsError with every field that is out of range.
    """

    max_new_tokens: int = 64
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    seed: int = 1234
    use_cache: bool = True

    def __post_init__(self) -> None:
        lines = []
        if self.max_new_tokens < 1:
            rule = "must be 1 or more"
            lines.append(problem("max_new_tokens", self.max_new_tokens, rule, "raise it"))
        if not 0 <= self.seed < 2**64:
            lines.append(problem("seed", self.seed, "must be in [0, 2^64)", "choose one there"))
        if lines:
            raise RootsError(*lines)


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

    Dropout is off meanwhile. Raises RootsError for a prompt longer than learned positions reach.
    """
    limit = check_lengths(prompts, decoder.model)
    if not prompts:
        return []
    rows = [_Row(list(prompt)) for prompt in prompts]
    was_training = decoder.training
    decoder.eval()
    try:
        with torch.no_grad():
            _run(decoder, rows, options, all_ends(end), limit)
    finally:
        decoder.train(was_training)
    return [Continuation(tuple(row.new), row.stopped_by or "max_new_tokens") for row in rows]


@dataclass
class _Row:
    """One prompt and what was added to it. Nothing is added once `stopped_by` is set."""

    prompt: list[int]
    new: list[int] = field(default_factory=list)
    stopped_by: StopReason | None = None

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.new

    def add(self, token: int, ends: frozenset[int], limit: int | None) -> None:
        """Add a token, or stop: at the end, or where nothing can be written after it."""
        if self.stopped_by is not None:
            return
        if token in ends:
            self.stopped_by = "end_of_document"
            return
        self.new.append(token)
        if len(self.new) == room_after(len(self.prompt), limit):
            self.stopped_by = "sequence_length"


class _Reader(Protocol):
    """Reads rows token by token."""

    def next_logits(self) -> Tensor:
        """logits_BV after all tokens of the rows, read since the last call."""


def _run(
    decoder: Decoder,
    rows: list[_Row],
    options: GenerationOptions,
    ends: frozenset[int],
    limit: int | None,
) -> None:
    reader: _Reader
    if options.use_cache:
        reader = _CachedReader(decoder, rows, options.max_new_tokens)
    else:
        reader = _PlainReader(decoder, rows)
    device = decoder.embedding.tokens.weight.device
    generator = torch.Generator(device).manual_seed(options.seed)
    for _ in range(options.max_new_tokens):
        tokens_B = choose_tokens(reader.next_logits(), options.sampling, generator).tolist()
        for row, token in zip(rows, tokens_B, strict=True):
            row.add(token, ends, limit)
        if all(row.stopped_by for row in rows):
            return


class _PlainReader:
    """Reads whole rows anew for every token, padded on the right, where causality hides it."""

    def __init__(self, decoder: Decoder, rows: list[_Row]) -> None:
        self.decoder = decoder
        self.rows = rows
        self.device = decoder.embedding.tokens.weight.device

    def next_logits(self) -> Tensor:
        """logits_BV after all tokens of the rows. A stopped row may have one unread token."""
        limit = position_limit(self.decoder.model)
        texts = [row.tokens[:limit] for row in self.rows]
        length = max(len(text) for text in texts)
        padded = [text + [0] * (length - len(text)) for text in texts]
        tokens_BT = torch.tensor(padded, device=self.device)
        last_B = torch.tensor([len(text) - 1 for text in texts], device=self.device)
        starts_BT = torch.zeros_like(tokens_BT)
        keys_B = torch.zeros_like(last_B)
        logits_B1V: Tensor = self.decoder(tokens_BT, starts_BT, keys_B, logits_at_B=last_B)
        return logits_B1V[:, 0]


class _CachedReader:
    """Reads every token once. Rows are padded on the left, which document starts hide."""

    def __init__(self, decoder: Decoder, rows: list[_Row], max_new_tokens: int) -> None:
        self.decoder = decoder
        self.rows = rows
        weight = decoder.embedding.tokens.weight
        self.device = weight.device
        self.width = max(len(row.prompt) for row in rows)
        self.cache = KVCache.allocate(
            decoder.model,
            decoder.embedding.tokens.axis,
            rows=len(rows),
            capacity=self.width + max_new_tokens,
            dtype=weight.dtype,
            device=weight.device,
        )

    def next_logits(self) -> Tensor:
        """logits_BV after all tokens of the rows: of the prompts first, then of one token each."""
        if self.cache.length == 0:
            padding = [self.width - len(row.prompt) for row in self.rows]
            texts = [[0] * pad + row.prompt for pad, row in zip(padding, self.rows, strict=True)]
            # Padding before the start looks at padding; an empty set of keys would give nan.
            starts = [[0] * pad + [pad] * (self.width - pad) for pad in padding]
        else:
            place = self.cache.length
            texts, starts = [], []
            for row in self.rows:
                stopped = row.stopped_by is not None
                texts.append([0 if stopped else row.new[-1]])
                # A stopped row goes on as a document of its own, so its positions stay valid.
                starts.append([place if stopped else self.width - len(row.prompt)])
        tokens_BT = torch.tensor(texts, device=self.device)
        starts_BT = torch.tensor(starts, device=self.device)
        last_B = torch.full((len(texts),), tokens_BT.shape[1] - 1, device=self.device)
        keys_B = torch.zeros_like(last_B)
        logits_B1V: Tensor = self.decoder(
            tokens_BT, starts_BT, keys_B, cache=self.cache, logits_at_B=last_B
        )
        return logits_B1V[:, 0]
