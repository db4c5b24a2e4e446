"""Functions whose results torch.compile takes as they are, marked without its import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def constant_in_graphs(function: F) -> F:
    """Mark `function`, which torch.compile then calls instead of tracing it.

    What torch.compiler.assume_constant_result does, without importing torch._dynamo: more than a
    second of every start, for programs that compile nothing.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
