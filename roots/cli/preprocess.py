"""`roots preprocess`: text files, or files of pairs, to .bin/.idx datasets. Never imports torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional, TypedDict

import typer

if TYPE_CHECKING:
    from roots.data.canaries import Canaries
    from roots.data.preprocessing.texts import Progress, Summary


class Choices(TypedDict, total=False):
    """Options that texts and pairs share, by the names of the functions that take them."""

    on_error: Literal["stop", "skip"]
    num_workers: int | None
    begin_token: str | None
    end_token: str | None
    line_limit: int


class OnErrorChoice(str, Enum):
    """What to do about a line without a text."""

    STOP = "stop"
    SKIP = "skip"


FILES_HELP = (
    "Folders, .txt, .jsonl (.ndjson, .jsonlines, .json), .parquet, also .gz, .zst, .bz2, .xz; any "
    "other text file by its name; with --pairs .tsv and JSON lines."
)
TextKey = Annotated[
    Optional[str],  # noqa: UP045  # typer evaluates this on Python 3.10 too
    typer.Option(help="Key or column that holds the text; default: text."),
]
LineLimit = Annotated[
    int,
    typer.Option(min=1, metavar="MIB", help="Longest line or JSON value, which is held whole."),
]
DEFAULT_LINE_MIB = 128
# Of every command that reads files of pairs; a number where no first line of a .tsv names columns.
SourceKey = Annotated[
    str, typer.Option(help="Of pairs: key, column, or number of a column from 1.")
]
TargetKey = Annotated[str, typer.Option(help="The same for the target.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --out names.")]
OnErrorOption = Annotated[
    OnErrorChoice, typer.Option(help="Whether a broken line ends the run or is left out.")
]
BeginToken = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="TOKEN",
        help="What begins every document, or `none`; default: as the tokenizer says.",
    ),
]
EndToken = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="TOKEN",
        help="What ends every document, as `<|endoftext|>`; default: the tokenizer's end "
        "token, which in that of a chat model ends a turn.",
    ),
]
NumCanaries = Annotated[
    int, typer.Option(min=0, help="Secrets to plant, for `roots audit`, of each number of repeats.")
]
CanaryRepeats = Annotated[
    str, typer.Option(metavar="R,R,...", help="How many documents hold a secret; 0: none does.")
]
CanaryFormat = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="TEXT",
        help="Document of a secret: # is a digit of it, NAME a name; default: "
        "'The secret number of NAME is ### ### ###.'",
    ),
]
CanarySeed = Annotated[int, typer.Option(min=0, help="Of secrets, names and places.")]
OF_CANARIES = ("canary_repeats", "canary_format", "canary_seed")


def preprocess(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(help=FILES_HELP),
    ],
    *,
    tokenizer: Annotated[str, typer.Option(help="Folder with tokenizer.json, or `bytes`.")],
    out: Annotated[Path, typer.Option(help="Prefix: PREFIX.bin, .idx and .json are written.")],
    text_key: TextKey = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help=".tsv or .jsonl of pairs: writes PREFIX.source and .target."),
    ] = False,
    source_key: SourceKey = "source",
    target_key: TargetKey = "target",
    on_error: OnErrorOption = OnErrorChoice.STOP,
    begin_token: BeginToken = None,
    end_token: EndToken = None,
    line_limit: LineLimit = DEFAULT_LINE_MIB,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Tokenizing processes; 0: none besides this one."),
    ] = None,
    overwrite: Overwrite = False,
    canaries: NumCanaries = 0,
    canary_repeats: CanaryRepeats = "0,1,4,16,64",
    canary_format: CanaryFormat = None,
    canary_seed: CanarySeed = 1234,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Tokenize documents, each between its begin and end tokens, all or nothing."""
    refuse_keys_of_the_other(context, pairs)
    refuse_useless_canaries(context, pairs)
    planted = drawn(canaries, canary_repeats, canary_format, canary_seed) if canaries else None
    sides = (".source", ".target") if pairs else ("",)
    endings = (".bin", ".idx", ".json", ".canaries.json")
    parts = [f"{out}{side}{ending}" for side in sides for ending in endings]
    refuse_existing(out, parts, overwrite, files)
    choices: Choices = {"on_error": on_error.value, "num_workers": workers}
    choices |= {"begin_token": begin_token, "end_token": end_token, "line_limit": line_limit << 20}
    if pairs:
        _preprocess_pairs(files, out, tokenizer, (source_key, target_key), choices, as_json)
        return
    from roots.data.preprocessing.texts import preprocess as run

    with _progress_bar(shown=not as_json) as on_progress:
        summary = run(
            files,
            out,
            tokenizer,
            text_key=text_key,
            on_progress=on_progress,
            canaries=planted,
            **choices,
        )
    _report_documents(out, summary, planted, as_json)


def _report_documents(out: Path, summary: Summary, planted: Canaries | None, as_json: bool) -> None:
    description = summary.description
    if as_json:
        report = {"prefix": str(out), "files": summary.files, **asdict(description)}
        report |= {"empty": summary.num_empty, "skipped": summary.num_skipped}
        report |= {"bare_files": summary.num_bare_files, "left_out": summary.left_out}
        report |= {"canary_documents": planted.documents if planted else 0}
        typer.echo(json.dumps(report))
        return
    typer.echo(
        f"{out}: {description.tokens} tokens in {description.documents} documents "
        f"from {summary.files} files"
    )
    # Bytes leave no choice.
    if description.tokenizer != "bytes":
        typer.echo(f"Every document is {summary.documents}.")
    if summary.num_empty or summary.num_skipped:
        typer.echo(f"Left out: {summary.num_empty} empty, {summary.num_skipped} broken documents.")
    if summary.num_bare_files:
        typer.echo(f"Without a document: {summary.num_bare_files} files.")
    if planted:
        what = f"{len(planted.canaries)} secrets in {planted.documents} documents"
        typer.echo(f"Planted among them: {what}, told in {out}.canaries.json.")


def drawn(count: int, repeats: str, text: str | None, seed: int) -> Canaries:
    """The secrets that the options ask for. Raises RootsError for what is no list of numbers."""
    from roots.data.canaries import DEFAULT_FORMAT, draw_canaries
    from roots.errors import RootsError, problem

    try:
        numbers = [int(number) for number in repeats.split(",")]
    except ValueError:
        rule, fix = "must be numbers with commas between them", "write them as 0,1,4,16,64"
        raise RootsError(problem("--canary-repeats", repeats, rule, fix)) from None
    return draw_canaries(count, numbers, text=text or DEFAULT_FORMAT, seed=seed)


def refuse_useless_canaries(context: typer.Context, pairs: bool) -> None:
    """Raise RootsError for canaries among pairs, and for options of theirs without them."""
    from roots.cli.options.useless import refuse_useless

    if pairs:
        rule = "has no effect with --pairs: secrets are planted among texts alone"
        refuse_useless(context, ("canaries", *OF_CANARIES), rule, "leave it out")
    elif not context.params["canaries"]:
        rule, fix = "has no effect without --canaries", "leave it out, or give --canaries N"
        refuse_useless(context, OF_CANARIES, rule, fix)


def refuse_keys_of_the_other(context: typer.Context, pairs: bool) -> None:
    """Raise RootsError for keys of pairs among texts, and for that of texts among pairs."""
    from roots.cli.options.useless import refuse_useless

    if pairs:
        rule, fix = "has no effect with --pairs", "leave it out, or give --source-key, --target-key"
        refuse_useless(context, ("text_key",), rule, fix)
    else:
        rule, fix = "has no effect without --pairs", "leave it out, or give --pairs"
        refuse_useless(context, ("source_key", "target_key"), rule, fix)


def refuse_existing(
    out: Path, parts: Iterable[str | Path], overwrite: bool, files: Iterable[Path] = ()
) -> None:
    """Raise RootsError for the first of `parts`, what is written for --out, that is there.

    What is one of `files`, which are read, is not overwritten even where that is asked for.
    """
    from roots.errors import RootsError, problem

    read = {each.resolve() for each in files}
    for part in map(Path, parts):
        if part.resolve() in read:
            rule = f"would write {part}, which is one of FILES"
            raise RootsError(problem("--out", str(out), rule, "give another"))
        if part.exists() and not overwrite:
            rule = f"{part} exists already, and nothing is overwritten"
            raise RootsError(problem("--out", str(out), rule, "give another, or --overwrite"))


def _preprocess_pairs(
    files: list[Path],
    out: Path,
    tokenizer: str,
    columns: tuple[str, str],
    choices: Choices,
    as_json: bool,
) -> None:
    from roots.data.preprocessing.pair_files import PairColumns
    from roots.data.preprocessing.pairs import preprocess_pairs

    with _progress_bar(shown=not as_json) as on_progress:
        summary = preprocess_pairs(
            files,
            out,
            tokenizer,
            columns=PairColumns(*columns),
            on_progress=on_progress,
            **choices,
        )
    source, target = summary.source, summary.target
    if as_json:
        report = {"prefix": str(out), "files": summary.files, "skipped": summary.num_skipped}
        typer.echo(json.dumps(report | {"source": asdict(source), "target": asdict(target)}))
        return
    typer.echo(
        f"{out}: {source.documents} pairs of {source.tokens} and {target.tokens} tokens "
        f"from {summary.files} files"
    )
    if summary.num_skipped:
        typer.echo(f"Left out: {summary.num_skipped} broken pairs.")


@contextmanager
def _progress_bar(shown: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Show bytes read, their rate, the tokens so far and the time left, on a terminal's stderr."""
    if not shown:
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    from roots.log import console_of

    console = console_of(sys.stderr)
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
