"""The paths of the server, over one model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from roots.generation.batching import Batch
from roots.generation.chat import ChatTemplate
from roots.generation.generate import check_tokenizer
from roots.generation.load import LoadedModel
from roots.generation.network import Network
from roots.generation.text_batch import TextBatch
from roots.inspection.inspect import InspectionOptions, inspect_text
from roots.serving.bodies import ChatBody, CompletionBody, InspectBody, parsed
from roots.serving.engine import Engine
from roots.serving.gate import Gate, read_body
from roots.serving.metrics import CONTENT_TYPE, Metrics
from roots.serving.orders import Clerk
from roots.serving.page.playground import playground
from roots.serving.refusals import Refusal
from roots.serving.replies import Desk, Reply
from roots.serving.settings import Settings
from roots.tokenizer.tokenizer import Tokenizer

# Tokens of a text whose inside is shown, at most: it is looked at while all others wait.
INSPECTED_TOKENS = 1024


class Front:
    """One model, and what answers for it. `stopping`: new requests are refused."""

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        settings: Settings,
    ) -> None:
        """Raises RootsError for a model that is no decoder, and a tokenizer of another one."""
        check_tokenizer(tokenizer, model.decoder.model)
        batch = Batch(
            Network.of(model.decoder),
            max_rows=settings.max_rows,
            max_blocks=settings.max_blocks,
        )
        self.engine = Engine(TextBatch(batch, tokenizer), max_waiting=settings.max_waiting)
        self.metrics = Metrics()
        self.desk = Desk(self.engine, self.metrics, settings.request_seconds)
        self.settings = settings
        self.stopping = False
        self._model = model
        self._tokenizer = tokenizer
        vocab_size = model.decoder.model.vocab_size
        self._clerk = Clerk(settings, tokenizer, template, vocab_size)
        self._since = int(time.time())

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/", self._page),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/inspect", self._inspect, methods=["POST"]),
        ]
        paths = [route.path for route in routes]
        gate = Middleware(Gate, self.settings, self.metrics, paths)
        handlers: dict[Any, Callable[..., Awaitable[Response]]] = {
            HTTPException: _of_starlette,
            ClientDisconnect: _to_nobody,
        }
        return Starlette(
            routes=routes, middleware=[gate], exception_handlers=handlers, lifespan=self._lifespan
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.engine.start()
        yield
        self.engine.stop()

    async def _page(self, _: Request) -> Response:
        settings = self.settings
        page = playground(settings.name, settings.context, needs_key=settings.api_key is not None)
        return HTMLResponse(page)

    async def _health(self, _: Request) -> Response:
        status = "stopping" if self.stopping else "ok"
        return JSONResponse({"status": status}, 503 if self.stopping else 200)

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(self.engine.load), media_type=CONTENT_TYPE)

    async def _models(self, _: Request) -> Response:
        model = {
            "id": self.settings.name,
            "object": "model",
            "created": self._since,
            "owned_by": "roots",
            "max_model_len": self.settings.context,
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def _completions(self, request: Request) -> Response:
        body = parsed(CompletionBody, await self._read(request))
        return Reply(self.desk, self._clerk.completion(body))

    async def _chat(self, request: Request) -> Response:
        body = parsed(ChatBody, await self._read(request))
        return Reply(self.desk, self._clerk.chat(body))

    async def _inspect(self, request: Request) -> Response:
        text = parsed(InspectBody, await self._read(request)).text
        tokens = len(self._tokenizer.encode(text, special_tokens=True))
        if tokens > INSPECTED_TOKENS:
            rule = f"text has {tokens} tokens; at most {INSPECTED_TOKENS} are inspected"
            raise Refusal(400, rule, param="text")
        look = partial(
            inspect_text, self._model, self._tokenizer, text, InspectionOptions(shown=48)
        )
        found = await asyncio.wrap_future(self.engine.call(look))
        # Where it lies on this machine is nobody else's business.
        found["checkpoint"] = Path(found["checkpoint"]).name
        return JSONResponse(found)

    async def _read(self, request: Request) -> bytes:
        if self.stopping:
            raise Refusal(503, "the server stops", code="stopping")
        return await read_body(request, self.settings.max_body_bytes)


async def _of_starlette(_: Request, error: HTTPException) -> Response:
    """An unknown path, or another method than it has."""
    refusal = Refusal(error.status_code, error.detail)
    return JSONResponse(refusal.body, refusal.status, {**(error.headers or {}), **refusal.headers})


async def _to_nobody(_: Request, __: ClientDisconnect) -> Response:
    """The client left while it sent its request."""
    return Response(status_code=499)
