"""One text on its way to a client: what is certain of it, token by token where asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from roots.generation.batching import Likelihood
from roots.generation.spelling import Spelling
from roots.generation.text_batch import TextEvent
from roots.inspection.inspect import text_of
from roots.tokenizer.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class ToldToken:
    """A token of the answer.

    text:            what it adds; nothing where a character goes on in the next token
    offset:          letters of the answer before it
    log_probability: in nats; None of the first token of a prompt, which nothing predicts
    likeliest:       tokens that were, and their log-probabilities, its own among them
    """

    text: str
    offset: int
    log_probability: float | None
    likeliest: dict[str, float] | None


@dataclass(frozen=True)
class Part:
    """What has come to an answer; `finish_reason` of its last part."""

    text: str
    tokens: list[ToldToken]
    finish_reason: FinishReason | None


@dataclass
class Answer:
    """Turns what happens to one text into parts of an answer.

    prompt:   its token ids; echoed: its text, where the answer begins with that
    tells:    whether tokens are told one by one
    new:      tokens written so far
    """

    tokenizer: Tokenizer
    prompt: Sequence[int]
    echoed: str | None
    tells: bool
    new: int = 0
    _began: bool = False
    _length: int = 0
    _offset: int = 0
    _pending: list[ToldToken] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._spelling = Spelling(self.tokenizer, self.prompt)

    def hear(self, event: TextEvent) -> Part:
        """The part of the answer that an event makes certain."""
        text = event.text
        if not self._began:
            self._began = True
            if self.echoed is not None:
                text = self.echoed + text
                self._pending += self._of_prompt(event.prompt) if self.tells else ()
                self._offset = len(self.echoed)
        if event.token_id is not None:
            self.new += 1
            if event.likelihood is not None:
                spelled = self._spelling.add(event.token_id)
                if event.stopped_by is not None:
                    spelled += self._spelling.finish()
                self._pending.append(self._told(event.likelihood, spelled))
                self._offset += len(spelled)
        self._length += len(text)
        if event.end is not None:
            self._pending.append(self._told(event.end, text_of(self.tokenizer, event.end.token_id)))
        return Part(text, self._certain(event), _reason(event))

    def _certain(self, event: TextEvent) -> list[ToldToken]:
        """Tokens whose text has been told; those that spell a stop never are."""
        if event.stopped_by is None or event.stopped_by == "stop_text":
            told = [each for each in self._pending if each.offset + len(each.text) <= self._length]
            if event.stopped_by is not None:
                told = [each for each in self._pending if each.offset < self._length]
        else:
            told = list(self._pending)
        self._pending = self._pending[len(told) :]
        return told

    def _of_prompt(self, likelihoods: Sequence[Likelihood]) -> Iterator[ToldToken]:
        spelling, offset = Spelling(self.tokenizer, ()), 0
        known = [None, *likelihoods]
        for token, likelihood in zip(self.prompt, known, strict=True):
            text = spelling.add(token)
            if likelihood is None:
                yield ToldToken(text, offset, None, None)
            else:
                told = self._told(likelihood, text)
                yield ToldToken(text, offset, told.log_probability, told.likeliest)
            offset += len(text)

    def _told(self, likelihood: Likelihood, text: str) -> ToldToken:
        own = text or text_of(self.tokenizer, likelihood.token_id)
        likeliest = {own: likelihood.log_probability}
        for token, log_probability in likelihood.likeliest:
            if token != likelihood.token_id:
                name = text_of(self.tokenizer, token)
                # Tokens that are parts of characters read alike.
                likeliest[f"token_id:{token}" if name in likeliest else name] = log_probability
        return ToldToken(text, self._offset, likelihood.log_probability, likeliest)


def _reason(event: TextEvent) -> FinishReason | None:
    if event.stopped_by is None:
        return None
    return "stop" if event.stopped_by in ("end_of_document", "stop_text") else "length"
