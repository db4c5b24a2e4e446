"""The page as one HTML file, out of the parts of an inspection's page and its own."""

from __future__ import annotations

from roots.inspection.page.report import SCRIPTS, STYLE
from roots.inspection.page.shell import asset, html_page, json_block


def playground(name: str, context: int, *, needs_key: bool) -> str:
    """The HTML. name: of the model; context: tokens of a text; needs_key: requests bear a key."""
    facts = {"name": name, "context": context, "needs_key": needs_key}
    body = [
        '<div id="playground"></div>',
        "<noscript>This page works with JavaScript, which is switched off.</noscript>",
        json_block("facts", facts),
    ]
    return html_page(
        name,
        body,
        styles=[asset(STYLE), asset("playground.css", __package__)],
        scripts=[*map(asset, SCRIPTS), asset("playground.js", __package__)],
    )
