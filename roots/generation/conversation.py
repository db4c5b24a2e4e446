"""A conversation with a model: its turns so far, and the next answer as it is written."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from roots.errors import RootsError, problem
from roots.generation.batching import Batch
from roots.generation.chat import ChatTemplate
from roots.generation.generate import with_seed_of
from roots.generation.limits import StopReason
from roots.generation.network import Network
from roots.generation.options import GenerationOptions
from roots.generation.text_batch import TextBatch
from roots.tokenizer.tokenizer import Tokenizer


@dataclass
class Conversation:
    """What was said so far, `messages`, after what the model is told first, `system`.

    context:    tokens that all of it and an answer may have
    stopped_by: why the last answer ended; None where it was stopped from outside
    """

    network: Network
    tokenizer: Tokenizer
    template: ChatTemplate
    options: GenerationOptions
    context: int
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    stopped_by: StopReason | None = None

    def reset(self) -> None:
        """Forget all that was said."""
        self.messages.clear()

    def check(self) -> None:
        """Raises RootsError where the template takes no conversation of this kind."""
        self._prompt("a question")

    def answer(self, message: str) -> Generator[str]:
        """What the model answers to the next message, in pieces as they are certain.

        Both are kept as turns, of an answer that is not heard to its end the part that was written;
        neither where nothing was.
        Raises RootsError, and keeps nothing, where the conversation has become too long.
        """
        prompt = self._prompt(message)
        room = self.context - len(prompt)
        if room < 1:
            rule = f"leave no room for an answer within {self.context} tokens"
            fix = "begin anew, or say less at once"
            raise RootsError(problem("conversation tokens", len(prompt), rule, fix))
        options = replace(self.options, max_new_tokens=min(self.options.max_new_tokens, room))
        options = with_seed_of(options, len(self.messages) // 2)
        texts = TextBatch(Batch(self.network), self.tokenizer)
        texts.add(prompt, options)
        with self._kept(message) as pieces:
            for event in texts.run():
                pieces.append(event.text)
                self.stopped_by = event.stopped_by
                yield event.text

    @contextmanager
    def _kept(self, message: str) -> Iterator[list[str]]:
        """The pieces of an answer; however the block ends, they are kept with the message."""
        pieces: list[str] = []
        self.stopped_by = None
        try:
            yield pieces
        finally:
            if pieces:
                self.messages += [
                    {"role": "user", "content": message},
                    {"role": "assistant", "content": "".join(pieces)},
                ]

    def _prompt(self, message: str) -> tuple[int, ...]:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages = [*first, *self.messages, {"role": "user", "content": message}]
        return self.template.encode(self.tokenizer, messages)
