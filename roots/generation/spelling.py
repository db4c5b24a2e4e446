"""From tokens to text while they come, and the texts that end it."""

from __future__ import annotations

from collections.abc import Sequence

from roots.tokenizer.tokenizer import Tokenizer

# What decoders write for bytes that are no whole character yet.
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# Tokens before the new ones that decide how these are spelled: with a space in front or without.
_CONTEXT = 6


class Spelling:
    """Spells the tokens behind a prompt, a few at a time.

    text:    what is certain so far, to the first of `stops`
    stopped: one of them has come
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        # Tokens of which all but the last `_unspelled` are in `_spelled`.
        self._tokens = list(prompt[-_CONTEXT:])
        self._known = len(self._tokens)
        self._held = ""
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """What a token adds for certain; nothing where a character or a stop may yet follow."""
        self._tokens.append(token)
        before = self._tokenizer.decode(self._tokens[: self._known])
        now = self._tokenizer.decode(self._tokens)
        if now.endswith(_UNFINISHED):
            return ""
        self._held += now[len(before) :]
        self._tokens = self._tokens[-_CONTEXT:]
        self._known = len(self._tokens)
        return self._release(self._certain())

    def finish(self) -> str:
        """What has been held back, once no token follows."""
        if self.stopped:
            return ""
        before = self._tokenizer.decode(self._tokens[: self._known])
        self._held += self._tokenizer.decode(self._tokens)[len(before) :]
        self._known = len(self._tokens)
        self._certain()
        return self._release(len(self._held))

    def _certain(self) -> int:
        """How much of what is held can be told; cuts it where a stop stands."""
        places = [self._held.find(stop) for stop in self._stops]
        found = [place for place in places if place >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]
            return len(self._held)
        overlaps = [_overlap(self._held, stop) for stop in self._stops]
        return len(self._held) - max(overlaps, default=0)

    def _release(self, count: int) -> str:
        told, self._held = self._held[:count], self._held[count:]
        self.text += told
        return told


def _overlap(text: str, stop: str) -> int:
    """Letters at the end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    sizes = range(longest, 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
