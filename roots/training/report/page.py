"""The report as one HTML file that needs nothing else: words, tables and pictures inside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from roots.files import cannot_write, write_atomically
from roots.training.report.facts import (
    Row,
    forecast_line,
    plan_rows,
    start_rows,
    summary_rows,
    time_rows,
)
from roots.training.report.pictures import Picture
from roots.training.report.read import Report

PAGE_FILE = "report.html"

_CSS = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #273238; --line: #d5dbde; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14191c; --ink: #dde3e6; --line: #39444a; }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.5rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.5rem 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); }
.pictures { display: grid; gap: 1.5rem; }
@media (min-width: 60rem) { .pictures { grid-template-columns: 1fr 1fr; } }
figure { margin: 0; }
figcaption { font-weight: 600; }
svg { width: 100%; height: auto; display: block; }
"""


def write_page(
    report: Report, pictures: Sequence[Picture], drawn: Mapping[str, str], folder: Path
) -> Path:
    """Write the page into `folder` and return its path; `drawn`: the SVG of every picture.

    Raises RootsError where it cannot be written.
    """
    path = folder / PAGE_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page_of(report, pictures, drawn))
    except OSError as error:
        raise cannot_write(path, error) from None
    return path


def page_of(report: Report, pictures: Sequence[Picture], drawn: Mapping[str, str]) -> str:
    """The HTML."""
    title = escape(f"Run {report.name}")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_CSS}</style></head><body>",
        f"<h1>{title}</h1>",
        _table(summary_rows(report)),
    ]
    account = report.account
    if account is not None:
        parts += ["<h2>Where the time went</h2>", _table(time_rows(account))]
        parts += ["<h2>Forecast</h2>"]
        parts += [f"<p>{escape(forecast_line(account, report.forecast))}</p>"]
        parts += [_table(plan_rows(report.forecast))]
    parts += ["<h2>Pictures</h2>", '<div class="pictures">']
    for picture in pictures:
        caption = f"<figcaption>{escape(picture.caption)}</figcaption>"
        parts.append(f"<figure>{caption}{drawn[picture.name]}</figure>")
    parts.append("</div>")
    if account is not None:
        head = ("start", "host", "layout", "steps", "end")
        parts += ["<h2>Starts</h2>", _table(start_rows(account), head)]
    return "\n".join([*parts, "</body></html>", ""])


def _table(rows: Iterable[Row], head: Row = ()) -> str:
    lines = [_row("th", head)] if head else []
    lines += [_row("td", row) for row in rows]
    return "\n".join(['<div class="scroll"><table>', *lines, "</table></div>"])


def _row(tag: str, cells: Row) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
