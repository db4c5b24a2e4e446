"""One HTML file that needs nothing else: style, scripts and data stand inside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

STYLE = "page.css"


def html_page(
    title: str, body: Sequence[str], *, styles: Sequence[str] = (), scripts: Sequence[str] = ()
) -> str:
    """The HTML around `body`; `styles` follow that of all pages, `scripts` run behind the body."""
    name = escape(title)
    style = "".join([asset(STYLE), *styles])
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name}</title><style>\n{style}</style></head><body>",
            f"<h1>{name}</h1>",
            *body,
            *(f"<script>\n{each}</script>" for each in scripts),
            "</body></html>",
            "",
        ]
    )


def asset(name: str, package: str = __package__) -> str:
    """The text of a file of `package`; by default one beside this module."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def json_block(name: str, tree: Any) -> str:
    """`tree` for the scripts of a page, in an element of that id, which no text in it ends."""
    text = json.dumps(tree, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'
