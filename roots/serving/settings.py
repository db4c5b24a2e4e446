"""What a server is called, what it may use, and whom it answers."""

from __future__ import annotations

from dataclasses import dataclass

from roots.config.model import ModelConfig
from roots.errors import RootsError, problem
from roots.generation.limits import position_limit
from roots.models.attention.rows import blocks_of

# Hosts that nobody else's machine reaches.
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Tokens of all texts together that the cache is for, where nothing else is said.
CACHE_TOKENS = 65_536
SHORTEST_KEY = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is served.

    name:            what clients call the model
    context:         tokens of a prompt and what follows it together, at most
    max_rows:        texts written side by side
    max_waiting:     texts that may wait besides; more are refused (429)
    max_blocks:      of the cache
    max_body_bytes:  of a request
    request_seconds: until an answer that is not whole is given up
    stop_seconds:    that requests under way have to end once the server is to stop
    api_key:         what every request must bear; None: nothing
    host:            where it listens
    """

    name: str
    context: int
    max_rows: int
    max_waiting: int
    max_blocks: int
    max_body_bytes: int
    request_seconds: float
    stop_seconds: float
    api_key: str | None
    host: str

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine reach it."""
        return self.host in LOOPBACK


def check_key(host: str, key: str | None) -> None:
    """Raise RootsError for a server that others reach and anyone may use, and for a short key."""
    if key is None and host not in LOOPBACK:
        rule = "is reached from other machines, and anyone could use the model"
        fix = "give --api-key-file FILE, or listen on 127.0.0.1"
        raise RootsError(problem("--host", host, rule, fix))
    if key is not None and (len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable()):
        rule = f"must be one line of at least {SHORTEST_KEY} letters, digits and signs"
        fix = "make one with `openssl rand -hex 32`"
        raise RootsError(problem("the key in --api-key-file", None, rule, fix))


def context_of(model: ModelConfig, wished: int | None) -> int:
    """Tokens that a text may have. Raises RootsError for more than the model has positions for."""
    limit = position_limit(model)
    if wished is not None and limit is not None and wished > limit:
        rule = f"is more than the {limit} positions that the model has learned"
        raise RootsError(problem("--context", wished, rule, "lower it"))
    return wished or model.sequence_length


def blocks_for(context: int, rows: int, tokens: int | None) -> int:
    """Blocks of a cache for `tokens`. Raises RootsError if not even one text would fit."""
    one = blocks_of(context)
    if tokens is None:
        return max(one, min(rows * one, blocks_of(CACHE_TOKENS)))
    if tokens < context:
        rule = f"is less than one text of --context {context} tokens needs"
        raise RootsError(problem("--cache-tokens", tokens, rule, "raise it, or lower --context"))
    return blocks_of(tokens)
