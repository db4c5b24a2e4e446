"""Continuous batching of texts: prompts in, pieces of text out as they are certain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from roots.generation.batching import Batch, Event, Likelihood, Request
from roots.generation.limits import StopReason
from roots.generation.options import GenerationOptions
from roots.generation.spelling import Spelling
from roots.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextEvent:
    """What a step has done to one text.

    text: what was added for certain; where it stopped at a text, what came before that
    The other fields are those of Event.
    """

    ticket: int
    text: str
    token_id: int | None
    likelihood: Likelihood | None
    prompt: tuple[Likelihood, ...]
    stopped_by: StopReason | None
    end: Likelihood | None = None


class TextBatch:
    """A Batch that spells what it writes, and ends it at the texts of `options.stop`."""

    def __init__(self, batch: Batch, tokenizer: Tokenizer) -> None:
        self.batch = batch
        self.tokenizer = tokenizer
        self._spellings: dict[int, Spelling] = {}

    def add(self, prompt: Sequence[int], options: GenerationOptions) -> int:
        """Take a prompt of token ids; returns its ticket. Raises RootsError as Batch does."""
        ends = frozenset(self.tokenizer.special.stops)
        ticket = self.batch.add(Request(tuple(prompt), options, ends))
        self._spellings[ticket] = Spelling(self.tokenizer, prompt, options.stop)
        return ticket

    def cancel(self, ticket: int) -> None:
        """Forget a text; one that has ended is forgotten already."""
        self.batch.cancel(ticket)
        self._spellings.pop(ticket, None)

    def step(self) -> list[TextEvent]:
        """One pass of the network -> what has happened, in the order of the tickets."""
        return [self._spelled(event) for event in self.batch.step()]

    def run(self) -> Iterator[TextEvent]:
        """All events until nothing is under way."""
        while not self.batch.idle:
            yield from self.step()

    def _spelled(self, event: Event) -> TextEvent:
        spelling = self._spellings[event.ticket]
        text = "" if event.token_id is None else spelling.add(event.token_id)
        stopped = event.stopped_by
        if spelling.stopped:
            stopped = "stop_text"
        elif stopped is not None:
            text += spelling.finish()
            if spelling.stopped:
                stopped = "stop_text"
        if stopped is not None:
            self.cancel(event.ticket)
        end = event.end if stopped == "end_of_document" else None
        return TextEvent(
            event.ticket, text, event.token_id, event.likelihood, event.prompt, stopped, end
        )
