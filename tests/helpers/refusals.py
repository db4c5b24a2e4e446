"""What a config that must not pass is refused with."""

from __future__ import annotations

from typing import Any

import pytest

from roots.config import parse_config
from roots.errors import RootsError


def refusals(tree: dict[str, Any]) -> tuple[str, ...]:
    """The lines that parse_config refuses `tree` with; fails if it does not."""
    with pytest.raises(RootsError) as caught:
        parse_config(tree)
    return caught.value.lines
