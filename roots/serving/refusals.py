"""Errors of a request: an HTTP status, and the body that clients of OpenAI's API know."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from roots.errors import RootsError

# The `type` of an error's body, by its status.
TYPES: Mapping[int, str] = {
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
# What a client that is told to come again should wait, in seconds.
RETRY_SECONDS = 1


class Refusal(Exception):
    """A request that is not answered as it wishes, and why."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    @staticmethod
    def of(error: Exception) -> Refusal:
        """What an error says to a client; of a bug, no more than that it is one."""
        if isinstance(error, Refusal):
            return error
        if isinstance(error, RootsError):
            return Refusal(400, "; ".join(error.lines), param=_subject(error.lines[0]))
        return Refusal(500, "the server failed; its log says more", code="internal_error")

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        found = {}
        if self.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            found["retry-after"] = str(RETRY_SECONDS)
        if self.status == HTTPStatus.UNAUTHORIZED:
            found["www-authenticate"] = "Bearer"
        if self.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            # Of a body that was not read, the next request cannot be told.
            found["connection"] = "close"
        return found


def _subject(line: str) -> str:
    return line.partition(":")[0].partition("=")[0]
