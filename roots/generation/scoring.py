"""How likely given texts are: log p of every token of a continuation or of a target.

Legend: B rows, T tokens, S source tokens, V vocabulary, M tokens that are scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from roots.errors import RootsError, problem
from roots.generation.layout import copies, of_all_copies
from roots.generation.network import Network, Piece
from roots.models.encoder_decoder import EncoderDecoder

TOKENS_AT_A_TIME = 2048
Ids = Sequence[int]
# log p of a token, and whether it is the likeliest in its place.
Found = tuple[float, bool]
# Told how many of the pairs are scored.
Report = Callable[[int], None]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Score:
    """What a model thinks of a text.

    log_probabilities: of each of its tokens, given all before it, in nats
    greedy:            whether each is the likeliest there
    """

    log_probabilities: tuple[float, ...]
    greedy: bool

    @property
    def total(self) -> float:
        """log p of the whole text, in nats."""
        return math.fsum(self.log_probabilities)

    @classmethod
    def of(cls, found: Sequence[Found]) -> Score:
        """Of what was found of every token."""
        return cls(tuple(each for each, _ in found), all(best for _, best in found))


def score_continuations(
    network: Network,
    pairs: Sequence[tuple[Ids, Ids]],
    *,
    tokens_at_a_time: int = TOKENS_AT_A_TIME,
    progress: Report | None = None,
) -> list[Score]:
    """Score the second of every pair of ids as what follows the first.

    The first must not be empty: it holds at least the token that begins a text. What is longer than
    the model's sequence_length loses tokens from its left. A context that several continuations
    share is read once. Every rank has all scores; each copy of the model takes a share.
    Raises RootsError for a continuation longer than the model reads.
    Communication: that of Network.read, and an all-gather of the scores between the copies.
    """
    limit = network.model.sequence_length
    _check_lengths(pairs, limit)
    groups: dict[tuple[int, ...], list[_Wanted]] = {}
    scores = {}
    for number, (context, continuation) in enumerate(pairs):
        if not continuation:
            scores[number] = Score((), True)
            continue
        room = limit + 1 - len(continuation)
        groups.setdefault(tuple(context)[-room:], []).append(_Wanted(number, tuple(continuation)))
    shared = [_Shared(context, tuple(wanted)) for context, wanted in groups.items()]
    copy, count = copies(network.mesh)
    batches = list(_batches(shared, tokens_at_a_time, lambda each: each.tokens))
    for batch in batches[copy::count]:
        scores |= _read_shared(network, batch)
        if progress is not None:
            progress(min(len(pairs), len(scores) * count))
    return of_all_copies(network.mesh, scores)


def score_targets(
    model: EncoderDecoder,
    pairs: Sequence[tuple[Ids, Ids]],
    *,
    begin: int,
    tokens_at_a_time: int = TOKENS_AT_A_TIME,
    progress: Report | None = None,
) -> list[Score]:
    """Score the second of every pair of ids as the target of the first, after the token `begin`.

    A source longer than the model takes loses tokens from its left. Dropout is off meanwhile.
    Raises RootsError for an empty source and for a target longer than the model writes.
    """
    _check_lengths(pairs, model.model.sequence_length)
    scores = {number: Score((), True) for number, (_, target) in enumerate(pairs) if not target}
    rows = [
        _Pair(number, tuple(source)[-model.model.source_tokens :], tuple(target))
        for number, (source, target) in enumerate(pairs)
        if target
    ]
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(rows, tokens_at_a_time, lambda row: len(row.source + row.target)):
            for row, found in zip(batch, _read_pairs(model, batch, begin), strict=True):
                scores[row.number] = Score.of(found)
            if progress is not None:
                progress(len(scores))
    finally:
        model.train(was_training)
    return [scores[number] for number in range(len(pairs))]


class _Wanted(NamedTuple):
    """The continuation of the pair called `number`."""

    number: int
    continuation: tuple[int, ...]


class _Shared(NamedTuple):
    """A context and all continuations that are scored behind it."""

    context: tuple[int, ...]
    wanted: tuple[_Wanted, ...]

    @property
    def tokens(self) -> int:
        """Tokens that are read of it: nothing follows the last of a continuation."""
        return len(self.context) + sum(len(each.continuation) - 1 for each in self.wanted)


class _Pair(NamedTuple):
    """The source and the target of the pair called `number`."""

    number: int
    source: tuple[int, ...]
    target: tuple[int, ...]


class _Pass:
    """The pieces of one pass of a network, and the tokens whose log p is asked for."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.at: list[int] = []
        self.targets: list[int] = []
        self._tokens = 0

    def add(self, row: int, ids: Ids) -> int:
        """Read `ids` on `row`; returns where the last of them stands."""
        self.pieces.append(Piece(row, ids))
        self._tokens += len(ids)
        return self._tokens - 1

    def ask(self, first: int, targets: Ids) -> slice:
        """Ask for targets[i] behind place first + i; where the answers will stand."""
        begin = len(self.targets)
        self.at += range(first, first + len(targets))
        self.targets += targets
        return slice(begin, len(self.targets))


def _check_lengths(pairs: Sequence[tuple[Ids, Ids]], limit: int) -> None:
    """Raise RootsError for a first that is empty, or a second longer than `limit`."""
    for number, (first, second) in enumerate(pairs, start=1):
        if not first:
            rule = "is empty: nothing can follow nothing"
            fix = "put the token there that begins a text"
            raise RootsError(problem(f"context {number}", None, rule, fix))
        if len(second) > limit:
            rule = f"is more than the model's sequence_length of {limit}"
            where = f"tokens of continuation {number}"
            raise RootsError(problem(where, len(second), rule, "shorten it"))


def _batches(
    items: Sequence[Item], tokens: int, length: Callable[[Item], int]
) -> Iterator[list[Item]]:
    """Items of like length, the longest first, of about `tokens` together."""
    batch: list[Item] = []
    total = 0
    for item in sorted(items, key=length, reverse=True):
        if batch and total + length(item) > tokens:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += length(item)
    if batch:
        yield batch


def _read_shared(network: Network, batch: Sequence[_Shared]) -> dict[int, Score]:
    """Score what stands behind some contexts, in one pass, or two where several share one."""
    rows = network.rows()
    first, second = _Pass(), _Pass()
    places: dict[int, tuple[slice, slice]] = {}
    forked: list[tuple[int, _Wanted]] = []
    for context, wanted in batch:
        row = rows.add()
        alone = len(wanted) == 1
        end = first.add(row, (*context, *wanted[0].continuation[:-1]) if alone else context)
        for each in wanted:
            if alone:
                begin = end + 1 - len(each.continuation)
                places[each.number] = first.ask(begin, each.continuation), slice(0, 0)
            else:
                places[each.number] = first.ask(end, each.continuation[:1]), slice(0, 0)
                forked += [(row, each)] if len(each.continuation) > 1 else []
    found = network.read(rows, first.pieces, first.at, _digest_of(first.targets))
    if forked:
        for row, (number, continuation) in forked:
            ids = continuation[:-1]
            begin = second.add(rows.fork(row), ids) + 1 - len(ids)
            places[number] = places[number][0], second.ask(begin, continuation[1:])
        rest = network.read(rows, second.pieces, second.at, _digest_of(second.targets))
    else:
        rest = []
    return {number: Score.of(found[here] + rest[there]) for number, (here, there) in places.items()}


def _read_pairs(model: EncoderDecoder, batch: Sequence[_Pair], begin: int) -> Iterator[list[Found]]:
    """What is found of the tokens of every target."""
    device = model.embedding.tokens.weight.device
    tokens_BT = _padded([(begin, *row.target[:-1]) for row in batch]).to(device)
    sources_BS = _padded([row.source for row in batch]).to(device)
    lengths_B = torch.tensor([len(row.source) for row in batch], device=device)
    targets = [token for row in batch for token in row.target]
    counts = [len(row.target) for row in batch]
    rows_M = torch.arange(len(batch)).repeat_interleave(torch.tensor(counts))
    places_M = torch.cat([torch.arange(count) for count in counts])
    with torch.no_grad():
        starts_BT = torch.zeros_like(tokens_BT)
        keys_B = torch.zeros_like(lengths_B)
        logits_BTV = model(tokens_BT, sources_BS, starts_BT, lengths_B, keys_B)
        found = iter(_digest_of(targets)(logits_BTV[rows_M.to(device), places_M.to(device)]))
    for count in counts:
        yield [next(found) for _ in range(count)]


def _digest_of(targets: Ids) -> Callable[[Tensor], list[Found]]:
    """Of logits_MV: log p of targets[m], and whether it is the likeliest."""

    def digest(logits_MV: Tensor) -> list[Found]:
        targets_M = torch.tensor(targets, dtype=torch.int64, device=logits_MV.device)
        likeliest_M = logits_MV.argmax(-1) == targets_M
        # 16-bit sums over a large vocabulary would not be worth their name.
        logits_MV = logits_MV.float()
        own_M = logits_MV.gather(-1, targets_M[:, None])[:, 0] - logits_MV.logsumexp(-1)
        return list(zip(own_M.tolist(), likeliest_M.tolist(), strict=True))

    return digest


def _padded(texts: Sequence[Ids]) -> Tensor:
    """tokens_BT, padded on the right with 0."""
    length = max(len(text) for text in texts)
    return torch.tensor([[*text, *[0] * (length - len(text))] for text in texts])
