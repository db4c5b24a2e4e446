"""The page as one HTML file, out of the parts of an inspection's page and its own."""

from __future__ import annotations

from importlib.resources import files

from roots.inspection.page.report import SCRIPTS, STYLES
from roots.inspection.page.shell import html_page, json_block


def playground(name: str, context: int, *, needs_key: bool) -> str:
    """The HTML. name: of the model; context: tokens of a text; needs_key: requests bear a key."""
    facts = {"name": name, "context": context, "needs_key": needs_key}
    body = [
        '<div id="playground"></div>',
        "<noscript>This page works with JavaScript, which is switched off.</noscript>",
        json_block("facts", facts),
    ]
    page = html_page(name, body, styles=STYLES, scripts=SCRIPTS)
    page = page.replace("</head>", f"<style>\n{_asset('playground.css')}</style></head>", 1)
    return page.replace(
        "</body></html>", f"<script>\n{_asset('playground.js')}</script></body></html>"
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
