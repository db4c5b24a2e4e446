"""The JSON of answers, in the two forms of OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from roots.serving.answers import Part, ToldToken

Json = dict[str, Any]


class Form(Protocol):
    """How an answer is told, whole or in chunks."""

    prefix: str
    whole: str
    chunk: str

    def choice(self, part: Part) -> Json:
        """A text as a whole, without its index."""

    def opening(self) -> Json | None:
        """What stands in front of a streamed text, without its index."""

    def delta(self, part: Part) -> Json:
        """A part of a streamed text, without its index."""


class CompletionForm:
    """That of /v1/completions; `tells`: with the tokens one by one."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, tells: bool) -> None:
        self._tells = tells

    def choice(self, part: Part) -> Json:
        """The text, its tokens and why it ended."""
        logprobs = _columns(part.tokens) if self._tells else None
        return {"text": part.text, "logprobs": logprobs, "finish_reason": part.finish_reason}

    def opening(self) -> Json | None:
        """Nothing."""
        return None

    def delta(self, part: Part) -> Json:
        """A part is told as a whole is."""
        return self.choice(part)


class ChatForm:
    """That of /v1/chat/completions; `tells`: with the tokens one by one."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, tells: bool) -> None:
        self._tells = tells

    def choice(self, part: Part) -> Json:
        """The message, its tokens and why it ended."""
        message = {"role": "assistant", "content": part.text, "refusal": None}
        return {"message": message, **self._rest(part)}

    def opening(self) -> Json | None:
        """Who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, part: Part) -> Json:
        """What the message goes on with."""
        return {"delta": {"content": part.text} if part.text else {}, **self._rest(part)}

    def _rest(self, part: Part) -> Json:
        content = [_entry(token) for token in part.tokens if token.likeliest is not None]
        logprobs = {"content": content, "refusal": None} if self._tells else None
        return {"logprobs": logprobs, "finish_reason": part.finish_reason}


def joined(parts: Sequence[Part]) -> Part:
    """The parts of a text as one."""
    text = "".join(part.text for part in parts)
    tokens = [token for part in parts for token in part.tokens]
    return Part(text, tokens, parts[-1].finish_reason)


def usage(prompt: int, new: int) -> Json:
    """Tokens of the prompts, and those that were written."""
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _columns(tokens: Sequence[ToldToken]) -> Json:
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.log_probability for token in tokens],
        "top_logprobs": [token.likeliest for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _entry(token: ToldToken) -> Json:
    assert token.likeliest is not None
    assert token.log_probability is not None
    top = [_pair(text, value) for text, value in token.likeliest.items()]
    # Its own stands first in `likeliest`, and among the others it stands where it belongs.
    top.sort(key=lambda pair: -pair["logprob"])
    return {**_pair(token.text, token.log_probability), "top_logprobs": top}


def _pair(text: str, value: float) -> Json:
    return {"token": text, "logprob": value, "bytes": list(text.encode())}
