"""The reference of the Python API: what `import roots` gives, and the types behind it."""

from __future__ import annotations

import roots

_HEAD = """---
title: Python API
---
# Python API

What `import roots` gives. A mistake in the input raises `roots.RootsError`, whose `lines` are
those that the command would print. [The Python page](../python.md) shows it in use.
"""


def api_page() -> str:
    """The page in Markdown; mkdocstrings reads the docstrings and runs nothing."""
    lines = [_HEAD]
    for name in api_names():
        lines += [f"::: {name}", ""]
    return "\n".join(lines)


def api_names() -> list[str]:
    """The dotted names of everything public."""
    return [f"{home}.{name}" for name, home in roots.HOMES.items()]
