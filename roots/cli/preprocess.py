"""`roots preprocess`: text files to a .bin/.idx dataset. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from roots.data.preprocess import Progress


class OnErrorChoice(str, Enum):
    """What to do about a line without a text."""

    STOP = "stop"
    SKIP = "skip"


def preprocess(
    files: Annotated[
        list[Path],
        typer.Argument(help=".txt, .jsonl[.gz|.zst], .parquet, folders of them, any text file."),
    ],
    *,
    tokenizer: Annotated[str, typer.Option(help="Folder with tokenizer.json, or `bytes`.")],
    out: Annotated[Path, typer.Option(help="Prefix: PREFIX.bin, .idx and .json are written.")],
    text_key: Annotated[str, typer.Option(help="Key or column that holds the text.")] = "text",
    on_error: Annotated[
        OnErrorChoice, typer.Option(help="Whether a broken line ends the run or is left out.")
    ] = OnErrorChoice.STOP,
    workers: Annotated[
        Optional[int],  # noqa: UP045  # typer evaluates this on Python 3.10 too
        typer.Option(min=0, help="Tokenizing processes; 0: none besides this one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Tokenize documents and append the end-of-document token to each, all or nothing."""
    from roots.data.preprocess import preprocess as run

    with _progress_bar(shown=not as_json) as on_progress:
        summary = run(
            files,
            out,
            tokenizer,
            text_key=text_key,
            on_error=on_error.value,
            num_workers=workers,
            on_progress=on_progress,
        )
    description = summary.description
    if as_json:
        report = {"prefix": str(out), "files": summary.files, **asdict(description)}
        report |= {"empty": summary.num_empty, "skipped": summary.num_skipped}
        typer.echo(json.dumps(report))
        return
    typer.echo(
        f"{out}: {description.tokens} tokens in {description.documents} documents "
        f"from {summary.files} files"
    )
    if summary.num_empty or summary.num_skipped:
        typer.echo(f"Left out: {summary.num_empty} empty, {summary.num_skipped} broken documents.")


@contextmanager
def _progress_bar(shown: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Show bytes read, their rate, the tokens so far and the time left, on a terminal's stderr."""
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("tokenize", total=None, tokens=0)

        def update(progress: Progress) -> None:
            bar.update(
                task,
                total=progress.total_bytes,
                completed=progress.read_bytes,
                tokens=progress.tokens,
            )

        yield update
