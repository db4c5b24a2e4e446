"""`roots tokenizer train`: learn a vocabulary from text files. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from roots.cli.preprocess import (
    DEFAULT_LINE_MIB,
    FILES_HELP,
    LineLimit,
    OnErrorChoice,
    Overwrite,
    SourceKey,
    TargetKey,
    TextKey,
    refuse_existing,
    refuse_keys_of_the_other,
)
from roots.errors import RootsError, problem

tokenizer_app = typer.Typer(help="Make tokenizers.", no_args_is_help=True)


@tokenizer_app.callback()
def _tokenizer() -> None:
    """Make tokenizers."""


@tokenizer_app.command()
def train(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(help=FILES_HELP),
    ],
    *,
    vocab_size: Annotated[int, typer.Option(help="Number of ids, special tokens included.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json.")],
    special_token: Annotated[
        Optional[list[str]],  # noqa: UP045  # typer evaluates this on Python 3.10 too
        typer.Option(help="Further special token; may be repeated."),
    ] = None,
    min_frequency: Annotated[
        int, typer.Option(min=1, help="How often a pair must occur to be merged.")
    ] = 2,
    text_key: TextKey = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help=".tsv or .jsonl of pairs: one vocabulary for both sides."),
    ] = False,
    source_key: SourceKey = "source",
    target_key: TargetKey = "target",
    on_error: Annotated[
        OnErrorChoice, typer.Option(help="Whether a broken line ends the run or is left out.")
    ] = OnErrorChoice.STOP,
    line_limit: LineLimit = DEFAULT_LINE_MIB,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Train a byte-level BPE tokenizer; every text can be encoded, whatever it is trained on."""
    from roots.tokenizer.train import FILES, reserved_folder, save_tokenizer, train_bpe

    refuse_keys_of_the_other(context, pairs)
    _refuse_useless_tokens(special_token or ())
    columns = (source_key, target_key) if pairs else None
    texts = _texts(files, text_key, columns, on_error.value, line_limit << 20)
    with reserved_folder(out):
        refuse_existing(out, [out / name for name in FILES], overwrite)
        trained = train_bpe(
            texts,
            vocab_size,
            special_tokens=special_token or (),
            min_frequency=min_frequency,
            show_progress=not as_json,
        )
        tokenizer = save_tokenizer(trained, out)
    if as_json:
        report = {
            "folder": str(out),
            "vocab_size": tokenizer.vocab_size,
            "end_of_document": tokenizer.end_of_document,
            "fingerprint": tokenizer.fingerprint,
        }
        typer.echo(json.dumps(report))
        return
    typer.echo(f"{out}: {tokenizer.vocab_size} ids, {tokenizer.end_of_document} ends a document")
    if tokenizer.vocab_size < vocab_size:
        typer.echo(f"The text supports {tokenizer.vocab_size} ids of the {vocab_size} asked for.")


def _refuse_useless_tokens(further: Sequence[str]) -> None:
    """Raise RootsError with a line for each special token that is empty or there already."""
    from roots.tokenizer.special_tokens import END_OF_DOCUMENT

    before = [[END_OF_DOCUMENT, *further[:number]] for number in range(len(further))]
    lines = [
        problem("--special-token", token, "is there already", "leave it out")
        if token
        else problem("--special-token", token, "must not be empty", "leave it out")
        for token, earlier in zip(further, before, strict=True)
        if not token or token in earlier
    ]
    if lines:
        raise RootsError(*lines)


def _texts(
    files: list[Path],
    text_key: str | None,
    columns: tuple[str, str] | None,
    on_error: Literal["stop", "skip"],
    line_limit: int,
) -> Iterator[str]:
    """The texts to learn from: documents, or with columns both sides of pairs."""
    from roots.log import get_logger

    def report(line: str) -> None:
        get_logger("tokenizer").warning("skipped: %s", line)

    if columns is not None:
        from roots.data.preprocessing.file_lists import find_pair_files
        from roots.data.preprocessing.pair_files import PairColumns, read_pair_texts

        paths = find_pair_files(files).paths
        return read_pair_texts(paths, PairColumns(*columns), on_error, report, line_limit)
    from roots.data.preprocessing.file_lists import find_files
    from roots.data.preprocessing.readers import read_texts

    found = find_files(files)
    return read_texts(found.paths, found.text_key(text_key), on_error, report, line_limit)
