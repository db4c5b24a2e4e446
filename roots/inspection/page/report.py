"""The findings of an inspection as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from roots.files import cannot_write, write_atomically
from roots.inspection.page.shell import asset, html_page, json_block

STYLE = "inspection.css"
SCRIPTS = ("drawing.js", "inspection.js")


def write_report(found: dict[str, Any], path: Path) -> None:
    """Write what `inspect_text` or `inspect_data` found. Raises RootsError where that fails."""
    try:
        write_atomically(path, report_of(found))
    except OSError as error:
        raise cannot_write(path, error) from None


def report_of(found: dict[str, Any]) -> str:
    """The HTML; its tabs are those of any page that calls showInspection of inspection.js."""
    body = [
        '<div id="inspection"></div>',
        "<noscript>This page draws with JavaScript, which is switched off.</noscript>",
        json_block("found", found),
    ]
    start = (
        'showInspection(document.getElementById("inspection"), '
        'JSON.parse(document.getElementById("found").textContent));'
    )
    return html_page(
        f"Inspection of {found['checkpoint']}",
        body,
        styles=[asset(STYLE)],
        scripts=[*map(asset, SCRIPTS), start],
    )
