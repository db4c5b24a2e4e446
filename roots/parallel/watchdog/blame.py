"""Which errors may be the result of what happened to another rank."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch.distributed as dist

_COMMUNICATION = re.compile("gloo|nccl|connection|timed out|process group", re.IGNORECASE)


def is_of_communication(error: BaseException | None) -> bool:
    """Whether the rank that raises it may not be the one to blame; torch has no type for that."""
    return any(_is_one(each) for each in _chain(error))


def _is_one(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and _COMMUNICATION.search(str(error)) is not None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
