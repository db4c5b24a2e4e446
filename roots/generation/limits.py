"""How far a model reads, what that leaves a text, and why a text stops."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from roots.config.model import ModelConfig
from roots.errors import RootsError, problem

StopReason = Literal["end_of_document", "max_new_tokens", "sequence_length", "stop_text"]

# The token that ends a text, or several of which any does.
Ends = int | Collection[int]


def all_ends(end: Ends) -> frozenset[int]:
    """Every token that ends a text."""
    return frozenset([end] if isinstance(end, int) else end)


def position_limit(model: ModelConfig) -> int | None:
    """Positions that can be read; None where they are not learned, which have no end."""
    return model.sequence_length if model.position == "learned" else None


def room_after(tokens: int, limit: int | None) -> int | None:
    """New tokens that a text of `tokens` has positions for; None for any number.

    The token at the last position can be read, and one more be written after it.
    """
    return None if limit is None else limit + 1 - tokens


def check_lengths(prompts: Sequence[Sequence[int]], model: ModelConfig) -> int | None:
    """The position limit, after checking the prompts against it.

    Raises RootsError with every prompt that is longer.
    """
    limit = position_limit(model)
    lines = [
        problem(
            f"prompt {number} tokens",
            len(prompt),
            f"is more than the {limit} positions that the model has learned",
            "shorten the prompt",
        )
        for number, prompt in enumerate(prompts, start=1)
        if limit is not None and len(prompt) > limit
    ]
    if lines:
        raise RootsError(*lines)
    return limit
