"""What every request passes first: whom it names, what it bears, how large it is; and its count."""

from __future__ import annotations

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from roots.errors import problem
from roots.log import get_logger
from roots.serving.metrics import Metrics
from roots.serving.refusals import Refusal
from roots.serving.settings import LOOPBACK, Settings

_LOG = get_logger(__name__)
# Answered without a key: the page asks for one itself.
OPEN_PATHS = ("/", "/health")


class Gate:
    """ASGI middleware: refuses, tells errors in one form, counts answers by path and status."""

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, paths: Collection[str]
    ) -> None:
        """paths: those that there are; any other is counted as one"""
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        began = False

        async def counted(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                self._metrics.requests[(path, message["status"])] += 1
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, counted)
        except Exception as error:  # noqa: BLE001 - whatever fails, the client is told
            refusal = Refusal.of(error)
            if refusal.status == 500:
                _LOG.exception("a request to %s failed", path)
            if not began:
                answer = JSONResponse(refusal.body, refusal.status, refusal.headers)
                await answer(scope, receive, counted)

    def _check(self, scope: Scope) -> None:
        """Raises Refusal."""
        headers = Headers(scope=scope)
        host = _host_of(headers.get("host", ""))
        if self._settings.is_local and host not in LOOPBACK:
            # A page of another site may have given its own name the address of this machine.
            rule, fix = "is not the name of this server", "ask for 127.0.0.1 or localhost"
            raise Refusal(400, problem("Host", host, rule, fix))
        key = self._settings.api_key
        if key is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), key.encode()):
                rule = "bears no valid key; send Authorization: Bearer KEY"
                raise Refusal(401, f"the request {rule}", code="invalid_api_key")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            # What a page of another site may send without being asked is of other types.
            line = problem("Content-Type", kind, "must be application/json", "set it")
            raise Refusal(415, line)


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request. Raises Refusal for one of more than `most` bytes."""
    rule, fix = f"is more than {most} bytes", "send less at once"
    given = request.headers.get("content-length", "")
    if given.isdigit() and int(given) > most:
        raise Refusal(413, problem("body", int(given), rule, fix), code="body_too_large")
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > most:
            raise Refusal(413, problem("body", None, rule, fix), code="body_too_large")
    return bytes(content)


def _host_of(header: str) -> str:
    """The name in a Host header, without the port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
