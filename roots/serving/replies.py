"""The answer to one request: whole, or streamed while it is written, until its client leaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from roots.generation.text_batch import TextEvent
from roots.serving.answers import Answer, Part
from roots.serving.engine import Engine, Order
from roots.serving.forms import Form, joined, usage
from roots.serving.metrics import Metrics
from roots.serving.refusals import Refusal


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a request asks for: a text for each of the orders.

    prompt_tokens: of all prompts, each counted once
    usage:         a streamed answer ends with the counts of tokens
    """

    model: str
    orders: Sequence[Order]
    answers: Sequence[Answer]
    form: Form
    prompt_tokens: int
    streams: bool
    usage: bool


@dataclass
class Desk:
    """What all replies share: who writes for them, what they count in, and which are under way."""

    engine: Engine
    metrics: Metrics
    seconds: float
    live: set[Reply] = field(default_factory=set)

    def give_up(self) -> None:
        """End all replies under way with an error."""
        for reply in self.live:
            reply.hear(0, Refusal(503, "the server stops", code="stopping"))


class Reply(Response):
    """Has its texts written while it is sent; no longer than its client stays."""

    def __init__(self, desk: Desk, work: Work) -> None:
        super().__init__()
        self._desk = desk
        self._work = work
        self._heard: asyncio.Queue[tuple[int, TextEvent | Exception]] = asyncio.Queue()
        self._head: dict[str, Any] = {
            "id": f"{work.form.prefix}-{uuid4().hex}",
            "object": work.form.chunk if work.streams else work.form.whole,
            "created": int(time.time()),
            "model": work.model,
        }

    def hear(self, number: int, what: TextEvent | Exception) -> None:
        """Take what happened to a text; called in the event loop."""
        self._heard.put_nowait((number, what))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write and send it; give up what is not written when the client leaves."""
        desk, begin = self._desk, time.monotonic()
        submission = desk.engine.submit(self._work.orders, self.hear)
        if submission is None:
            rule = f"{desk.engine.most} texts are written or wait already; ask again later"
            raise Refusal(429, rule, code="queue_full")
        desk.live.add(self)
        tasks = [
            asyncio.ensure_future(self._write(scope, receive, send)),
            asyncio.ensure_future(_left(receive)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
            else:
                desk.metrics.cancelled += 1
        finally:
            desk.live.discard(self)
            desk.engine.cancel(submission)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            desk.metrics.seconds.add(time.monotonic() - begin)

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._work.streams:
            await self._stream(send)
            return
        parts: list[list[Part]] = [[] for _ in self._work.orders]
        async for number, part in self._parts():
            parts[number].append(part)
        choices = [
            {"index": number, **self._work.form.choice(joined(some))}
            for number, some in enumerate(parts)
        ]
        body = {**self._head, "choices": choices, "usage": self._usage()}
        await JSONResponse(body)(scope, receive, send)

    async def _parts(self) -> AsyncIterator[tuple[int, Part]]:
        """Parts of all texts as they come. Raises Refusal when time is up or writing failed."""
        metrics, begin = self._desk.metrics, time.monotonic()
        metrics.prompt_tokens += self._work.prompt_tokens
        left = len(self._work.orders)
        first = True
        while left:
            rest = begin + self._desk.seconds - time.monotonic()
            try:
                number, what = await asyncio.wait_for(self._heard.get(), max(rest, 0.0))
            except asyncio.TimeoutError:
                rule = f"not done in {self._desk.seconds:g} seconds; ask for fewer tokens"
                raise Refusal(504, rule, code="timeout") from None
            if isinstance(what, Exception):
                raise Refusal.of(what)
            if first:
                metrics.first_token_seconds.add(time.monotonic() - begin)
                first = False
            metrics.new_tokens += what.token_id is not None
            left -= what.stopped_by is not None
            yield number, self._work.answers[number].hear(what)

    async def _stream(self, send: Send) -> None:
        """Server-sent events, of which the first comes with the first part."""
        sender = _Events(send)
        try:
            opened: set[int] = set()
            async for number, part in self._parts():
                opening = self._work.form.opening() if number not in opened else None
                opened.add(number)
                if opening is not None:
                    await sender.add(self._chunk({"index": number, **opening}))
                if part.text or part.tokens or part.finish_reason:
                    delta = {"index": number, **self._work.form.delta(part)}
                    await sender.add(self._chunk(delta))
        except Refusal as refusal:
            if not sender.began:
                raise
            await sender.add(refusal.body)
            await sender.end()
            return
        if self._work.usage:
            await sender.add({**self._head, "choices": [], "usage": self._usage()})
        await sender.end(done=True)

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": [choice]}

    def _usage(self) -> dict[str, Any]:
        return usage(self._work.prompt_tokens, sum(answer.new for answer in self._work.answers))


class _Events:
    """Server-sent events over ASGI."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.began = False

    async def add(self, tree: dict[str, Any]) -> None:
        if not self.began:
            self.began = True
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._body(f"data: {json.dumps(tree, separators=(',', ':'))}\n\n", more=True)

    async def end(self, *, done: bool = False) -> None:
        await self._body("data: [DONE]\n\n" if done else "", more=False)

    async def _body(self, text: str, *, more: bool) -> None:
        message = {"type": "http.response.body", "body": text.encode(), "more_body": more}
        await self._send(message)


async def _left(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
