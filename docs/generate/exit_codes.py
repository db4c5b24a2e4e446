"""The reference of exit codes."""

from __future__ import annotations

from docs.generate.tables import code, table
from roots.errors import ExitCode

_HEAD = """---
title: Exit codes
---
# Exit codes

What a command and the scripts in `launch/` tell whoever started them.
"""


def exit_codes_page() -> str:
    """The page in Markdown."""
    rows = [(code(int(each)), code(each.name), each.meaning) for each in ExitCode]
    return "\n".join([_HEAD, *table(("code", "name", "meaning"), rows), ""])
