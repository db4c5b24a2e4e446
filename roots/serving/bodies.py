"""The bodies of requests, as clients of OpenAI's API write them; vLLM's names for what that lacks.

A field that is not known, or that would have to be left out of account, is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from roots.errors import problem
from roots.serving.refusals import Refusal

# Texts that one request may ask for of each prompt, and likeliest tokens at each place.
MOST_CHOICES = 128
MOST_LIKELIEST = 20
# Letters of a wrong value that are told.
_SHOWN = 60


def _nothing(value: Any) -> Any:
    if value:
        raise ValueError("is not supported here")
    return value


# Fields that clients send though they ask for nothing.
Unused = Annotated[Any, AfterValidator(_nothing)]
Body = TypeVar("Body", bound=BaseModel)


class StreamOptions(BaseModel):
    """How a streamed answer ends."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None


class Sampled(BaseModel):
    """What both kinds of completions have."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str | list[str] | None, Field(description="a text or a list of texts")] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    logit_bias: Unused = None


class CompletionBody(Sampled):
    """POST /v1/completions."""

    prompt: Annotated[
        str | list[str] | list[int] | list[list[int]],
        Field(description="a text, token ids, or a list of several of either"),
    ]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELIEST)] | None = None
    echo: bool | None = None
    best_of: Literal[1] | None = None
    suffix: Unused = None


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: str
    content: str
    name: str | None = None


class ChatBody(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELIEST)] | None = None
    tools: Unused = None
    response_format: Unused = None


class InspectBody(BaseModel):
    """POST /inspect, of the page."""

    model_config = ConfigDict(strict=True, extra="forbid")

    text: str


def parsed(kind: type[Body], content: bytes) -> Body:
    """A body from its JSON. Raises Refusal with the first field that is wrong."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise _refusal(kind, error) from None


def _refusal(kind: type[BaseModel], error: ValidationError) -> Refusal:
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "json_invalid" or not first["loc"]:
        return Refusal(400, f"the body is no JSON object of this request: {first['msg']}")
    name = str(first["loc"][0])
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return Refusal(400, problem(name, None, "is missing", "give it"), param=name)
    if first["type"] == "extra_forbidden":
        return Refusal(400, problem(where, None, "is not known here", "leave it out"), param=where)
    several = sum(each["loc"][0] == name for each in errors) > 1
    if several and kind.model_fields[name].description is not None:
        # One of each type that it could have had.
        rule = f"must be {kind.model_fields[name].description}"
        return Refusal(400, problem(name, None, rule, "send one of these"), param=name)
    shown = repr(first["input"])
    value = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return Refusal(
        400, f"{where}={value}: {first['msg'].removeprefix('Value error, ')}", param=where
    )
