"""Continuous batching: texts begin and end while others are being written.

Every step is one pass of the network over one new token of every text under way and as much of the
prompts of others as fits beside them (Yu et al., "Orca", OSDI 2022; prompts in parts as Agrawal et
al., arXiv:2308.16369). A text that has ended leaves at once, and its place is taken by the next one
that waits.

Legend: M tokens whose next one is asked for, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from roots.errors import RootsError, problem
from roots.generation.limits import StopReason, position_limit, room_after
from roots.generation.network import Network, Piece
from roots.generation.options import GenerationOptions
from roots.generation.sampling import Chooser
from roots.models.attention.rows import blocks_of


@dataclass(frozen=True)
class Request:
    """A prompt of at least one token, and how it is continued until one of `ends`.

    Raises RootsError for an empty prompt.
    """

    token_ids: tuple[int, ...]
    options: GenerationOptions
    ends: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not self.token_ids:
            rule, fix = "is empty, and nothing can follow it", "give at least one token"
            raise RootsError(problem("prompt", None, rule, fix))


@dataclass(frozen=True)
class Likelihood:
    """log p of a token behind those before it, in nats, and of the likeliest in its place.

    Both are the model's own: no temperature or penalty is in them.
    """

    token_id: int
    log_probability: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Event:
    """What a step has done to one text.

    token_id:   what was added to it, if anything; the token that ended it is not
    likelihood: of that, if asked for
    prompt:     of the prompt's tokens but the first, if asked for, once they have all been read
    stopped_by: why it ended, if it did
    end:        likelihood of the token that ended it, if one did and it was asked for
    """

    ticket: int
    token_id: int | None = None
    likelihood: Likelihood | None = None
    prompt: tuple[Likelihood, ...] = ()
    stopped_by: StopReason | None = None
    end: Likelihood | None = None


@dataclass(eq=False)
class _Text:
    """One text under way, on its row of the cache."""

    ticket: int
    request: Request
    chooser: Chooser
    row: int
    blocks: int
    new: list[int] = field(default_factory=list)
    prompt_likelihoods: list[Likelihood] = field(default_factory=list)

    def tokens(self, first: int, last: int) -> list[int]:
        """Tokens [first, last) of prompt and continuation."""
        prompt = self.request.token_ids
        if first >= len(prompt):
            return self.new[first - len(prompt) : last - len(prompt)]
        return [*prompt[first:last], *self.new[: max(0, last - len(prompt))]]

    @property
    def length(self) -> int:
        return len(self.request.token_ids) + len(self.new)


@dataclass(frozen=True)
class _Ask:
    """A place whose logits are wanted: of `target` in a prompt, or to choose what follows."""

    text: _Text
    target: int | None


@dataclass(frozen=True)
class _Answer:
    token_id: int
    likelihood: Likelihood | None


class Batch:
    """Texts written side by side by one network.

    On several ranks each has one, and all make the same calls in the same order.
    """

    def __init__(
        self,
        network: Network,
        *,
        max_rows: int = 32,
        tokens_per_step: int = 512,
        max_blocks: int | None = None,
    ) -> None:
        """
        max_rows:        texts under way at once
        tokens_per_step: tokens read in a step; more prompts wait for the next one
        max_blocks:      of the cache, BLOCK_TOKENS tokens each; a text waits until all that it may
                         come to need are free. None: no bound
        """
        self.network = network
        self.rows = network.rows()
        self.max_rows = max_rows
        self.tokens_per_step = max(tokens_per_step, max_rows)
        self.max_blocks = max_blocks
        self._limit = position_limit(network.model)
        self._waiting: deque[tuple[int, Request]] = deque()
        self._running: dict[int, _Text] = {}
        self._tickets = 0

    @property
    def waiting(self) -> int:
        """Texts that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Texts under way."""
        return len(self._running)

    @property
    def reserved_blocks(self) -> int:
        """Blocks that the texts under way have or may come to need."""
        return sum(text.blocks for text in self._running.values())

    @property
    def idle(self) -> bool:
        """Whether nothing is under way and nothing waits."""
        return not (self._running or self._waiting)

    def add(self, request: Request) -> int:
        """Take a request and return its ticket.

        Raises RootsError for a prompt longer than learned positions, and one that needs more blocks
        than there are.
        """
        length = len(request.token_ids)
        if self._limit is not None and length > self._limit:
            rule = f"is more than the {self._limit} positions that the model has learned"
            raise RootsError(problem("prompt tokens", length, rule, "shorten the prompt"))
        needed = self._blocks(request)
        if self.max_blocks is not None and needed > self.max_blocks:
            rule = f"needs {needed} blocks of the cache, which has {self.max_blocks}"
            fix = "shorten the prompt or ask for fewer new tokens"
            raise RootsError(problem("prompt tokens", length, rule, fix))
        ticket, self._tickets = self._tickets, self._tickets + 1
        self._waiting.append((ticket, request))
        return ticket

    def cancel(self, ticket: int) -> None:
        """Forget a text, wherever it is; one that has ended is forgotten already."""
        text = self._running.pop(ticket, None)
        if text is not None:
            self.rows.remove(text.row)
        else:
            self._waiting = deque(each for each in self._waiting if each[0] != ticket)

    def step(self) -> list[Event]:
        """One pass of the network -> what has happened, in the order of the tickets."""
        self._begin_waiting()
        pieces, places, asks = self._plan()
        if not pieces:
            return []

        def digest(logits_MV: Tensor) -> list[_Answer]:
            return list(_answers(asks, logits_MV))

        answers = self.network.read(self.rows, pieces, places, digest)
        events = []
        for ask, answer in zip(asks, answers, strict=True):
            if ask.target is None:
                events.append(self._added(ask.text, answer))
            elif answer.likelihood is not None:
                ask.text.prompt_likelihoods.append(answer.likelihood)
        return sorted(events, key=lambda event: event.ticket)

    def _blocks(self, request: Request) -> int:
        room = room_after(len(request.token_ids), self._limit)
        new = request.options.max_new_tokens
        return blocks_of(len(request.token_ids) + (new if room is None else min(new, room)))

    def _begin_waiting(self) -> None:
        """Begin texts in the order in which they came, as far as there is room."""
        reserved = self.reserved_blocks
        while self._waiting and len(self._running) < self.max_rows:
            ticket, request = self._waiting[0]
            blocks = self._blocks(request)
            if self.max_blocks is not None and reserved + blocks > self.max_blocks:
                return
            self._waiting.popleft()
            reserved += blocks
            options = request.options
            chooser = Chooser(options.sampling, options.seed, self.network.device)
            self._running[ticket] = _Text(ticket, request, chooser, self.rows.add(), blocks)

    def _plan(self) -> tuple[list[Piece], list[int], list[_Ask]]:
        """What the next pass reads, and the places in it that are asked for."""
        pieces: list[Piece] = []
        places: list[int] = []
        asks: list[_Ask] = []
        left = self.tokens_per_step
        begin = 0
        # Those that write go on in every step; prompts share what they leave.
        for text in sorted(self._running.values(), key=self._unread):
            past = self.rows.length(text.row)
            count = min(self._unread(text), left)
            if count == 0:
                break
            pieces.append(Piece(text.row, text.tokens(past, past + count)))
            for place, target in _wanted(text, past, count):
                places.append(begin + place)
                asks.append(_Ask(text, target))
            left -= count
            begin += count
        return pieces, places, asks

    def _unread(self, text: _Text) -> int:
        return text.length - self.rows.length(text.row)

    def _added(self, text: _Text, answer: _Answer) -> Event:
        """Add a token to a text, or end it: at its end, or where nothing can be written after."""
        options, prompt = text.request.options, tuple(text.prompt_likelihoods)
        text.prompt_likelihoods.clear()
        token: int | None = answer.token_id
        stopped: StopReason | None = None
        if options.max_new_tokens == 0:
            token, stopped = None, "max_new_tokens"
        elif token in text.request.ends:
            token, stopped = None, "end_of_document"
        else:
            text.new.append(answer.token_id)
            if len(text.new) == room_after(len(text.request.token_ids), self._limit):
                stopped = "sequence_length"
            elif len(text.new) == options.max_new_tokens:
                stopped = "max_new_tokens"
        if stopped is not None:
            self.cancel(text.ticket)
        likelihood = None if token is None else answer.likelihood
        end = answer.likelihood if stopped == "end_of_document" else None
        return Event(text.ticket, token, likelihood, prompt, stopped, end)


def _wanted(text: _Text, past: int, count: int) -> Iterator[tuple[int, int | None]]:
    """Places in a piece whose logits are asked for, with the token of the prompt there."""
    prompt = text.request.token_ids
    if text.request.options.of_prompt:
        for place in range(count):
            if past + place + 1 < len(prompt):
                yield place, prompt[past + place + 1]
    if past + count == text.length:
        yield count - 1, None


def _answers(asks: Sequence[_Ask], logits_MV: Tensor) -> Iterator[_Answer]:
    likeliest_M: list[int] = logits_MV.argmax(-1).tolist()
    for ask, likeliest, logits_V in zip(asks, likeliest_M, logits_MV, strict=True):
        text, token = ask.text, ask.target
        if token is None:
            if text.chooser.takes_likeliest:
                token = likeliest
            else:
                token = text.chooser.choose(logits_V, text.request.token_ids, text.new)
        yield _Answer(token, _likelihood(text.request.options, token, logits_V))


def _likelihood(options: GenerationOptions, token: int, logits_V: Tensor) -> Likelihood | None:
    if options.log_probabilities is None:
        return None
    log_p_V = torch.log_softmax(logits_V.float(), -1)
    top = log_p_V.topk(min(options.log_probabilities, len(log_p_V)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return Likelihood(token, float(log_p_V[token]), tuple(pairs))
