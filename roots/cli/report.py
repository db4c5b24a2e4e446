"""`roots report`: where the time of a run went, and its curves, from what lies in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from roots.training.report.read import Report


def report(
    run: Annotated[Path, typer.Argument(help="Folder of the run; it may be training.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page and pictures; default: RUN/report.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="JSON instead of text; files only with --out."),
    ] = False,
) -> None:
    """Tell where the time of RUN went, with its goodput; write report.html and pictures as PNG."""
    from roots.training.report.facts import plain, text_lines
    from roots.training.report.read import read_report

    found = read_report(run)
    if as_json:
        files = [] if out is None else _write(found, out)
        tree = {**plain(found), "files": [str(each) for each in files]}
        typer.echo(json.dumps(tree, indent=2, allow_nan=False))
        return
    typer.echo("\n".join(text_lines(found)))
    page, *pictures = _write(found, run / "report" if out is None else out)
    typer.echo("")
    typer.echo(f"page      {page}")
    typer.echo(f"pictures  {' '.join(each.name for each in pictures)}")


def _write(found: Report, folder: Path) -> list[Path]:
    """Write page and pictures into `folder`; return them, the page first."""
    from roots.training.report.page import write_page
    from roots.training.report.pictures import pictures_of, write_pictures

    pictures = list(pictures_of(found))
    drawn = write_pictures(pictures, folder)
    page = write_page(found, pictures, drawn, folder)
    return [page, *(folder / f"{picture.name}.png" for picture in pictures)]
