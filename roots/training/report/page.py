"""The report as one HTML file that needs nothing else: words, tables and pictures inside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from roots.files import cannot_write, write_atomically
from roots.inspection.page.shell import asset, html_page
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
STYLE = "pictures.css"


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
    parts = [_table(summary_rows(report))]
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
    return html_page(f"Run {report.name}", parts, styles=[asset(STYLE)])


def _table(rows: Iterable[Row], head: Row = ()) -> str:
    lines = [_row("th", head)] if head else []
    lines += [_row("td", row) for row in rows]
    return "\n".join(['<div class="scroll"><table>', *lines, "</table></div>"])


def _row(tag: str, cells: Row) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
