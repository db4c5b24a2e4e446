"""Environment variables for what starts without torch, which roots.device loads."""

from __future__ import annotations

import os


def variable(name: str) -> str:
    """The value of an environment variable; "" where it is not set."""
    return os.environ.get(name, "")
